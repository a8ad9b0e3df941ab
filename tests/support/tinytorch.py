"""Tiny random Gemmas of the classes that hold more than a plain decoder, made by transformers' own code.

- `3-images`, Gemma3ForConditionalGeneration: a vision tower, as Gemma 3 4B, 12B and 27B
- `3n`, Gemma3nForCausalLM: per-layer embeddings, layers that share keys, a final soft-cap
- `4`, Gemma4ForCausalLM: values that are keys, another head and other keys where attention is global, a final soft-cap
- `4-images`, Gemma4ForConditionalGeneration: a vision tower, per-layer embeddings, layers that share keys: E2B, E4B
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.standin import write_tokenizer

KINDS = ("3-images", "3n", "4", "4-images")
SLIDING_WINDOW = 16
SOFT_CAP = 5.0
"""Low enough for these weights' logits to reach it."""
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def generation_of(kind: str) -> str:
    """`3` for `3-images`: the generation whose rules it has."""
    return kind.partition("-")[0]


def write_model(folder: Path, kind: str) -> Path:
    """A random model of that kind in fp32, with weights large enough for attention and soft-capping to matter."""
    import torch
    import transformers

    vocabulary = write_tokenizer(folder, generation_of(kind))
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": _LAYERS,
    }
    torch.manual_seed(0)
    model = _MAKERS[kind](transformers, shape)
    with torch.no_grad():
        for name, value in model.named_parameters():
            around_zero = "norm" not in name or generation_of(kind) == "3"  # whose norms multiply by 1 + weight
            value.normal_(0.0 if around_zero else 1.0, 0.15)
    model.save_pretrained(folder)
    return folder


def _siglip(transformers: Any) -> Any:
    return transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )


def _gemma_3_images(transformers: Any, shape: dict[str, Any]) -> Any:
    text = transformers.Gemma3TextConfig(**shape, query_pre_attn_scalar=16)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=_siglip(transformers), mm_tokens_per_image=4, image_token_index=5
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _gemma_3n(transformers: Any, shape: dict[str, Any]) -> Any:
    config = transformers.Gemma3nTextConfig(
        **{**shape, "intermediate_size": [128] * 4},
        vocab_size_per_layer_input=shape["vocab_size"],
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        final_logit_softcapping=SOFT_CAP,
    )
    return transformers.Gemma3nForCausalLM(config)


def _gemma_4(transformers: Any, shape: dict[str, Any]) -> Any:
    config = transformers.Gemma4TextConfig(
        **shape,
        hidden_size_per_layer_input=0,
        global_head_dim=32,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        final_logit_softcapping=SOFT_CAP,
    )
    return transformers.Gemma4ForCausalLM(config)


def _gemma_4_images(transformers: Any, shape: dict[str, Any]) -> Any:
    text = transformers.Gemma4TextConfig(
        **shape,
        vocab_size_per_layer_input=shape["vocab_size"],
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        global_head_dim=32,
        final_logit_softcapping=SOFT_CAP,
    )
    vision = transformers.Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    config = transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None, image_token_id=5)
    return transformers.Gemma4ForConditionalGeneration(config)


_MAKERS = {"3-images": _gemma_3_images, "3n": _gemma_3n, "4": _gemma_4, "4-images": _gemma_4_images}
