"""Tiny random Gemma models in Hugging Face's format, written without torch or transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.support.standin import write_tokenizer

SLIDING_WINDOW = 16
_FAMILIES = {"1": "gemma", "2": "gemma2", "3": "gemma3_text"}
_CLASSES = {"1": "GemmaForCausalLM", "2": "Gemma2ForCausalLM", "3": "Gemma3ForCausalLM"}
_KINDS = ["sliding_attention", "full_attention"]


def write_model(folder: Path, generation: str, **changes: Any) -> Path:
    """A random Gemma 1, 2 or 3 of about 60,000 weights in fp32; `changes` are entries of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = text_shape(write_tokenizer(folder, generation), generation) | changes
    config = {"architectures": [_CLASSES[generation]], "dtype": "float32", **shape}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(text_weights(shape, "model.", np.random.default_rng(0)), folder / "model.safetensors", {"format": "pt"})
    return folder


def text_shape(vocabulary: int, generation: str) -> dict[str, Any]:
    """config.json of a decoder with two layers and two heads of keys."""
    shape: dict[str, Any] = {
        "model_type": _FAMILIES[generation],
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if generation != "1":
        shape |= {"sliding_window": SLIDING_WINDOW, "layer_types": _KINDS, "query_pre_attn_scalar": 16}
    if generation == "2":
        shape |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return shape


def text_weights(shape: dict[str, Any], prefix: str, random: np.random.Generator) -> dict[str, Any]:
    """Weights large enough for attention and soft-capping to matter, by their published keys."""
    hidden, ffn, size = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    query, key = shape["num_attention_heads"] * size, shape["num_key_value_heads"] * size
    norms = ["input_layernorm", "post_attention_layernorm"]
    if shape["model_type"] != "gemma":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    sizes: dict[str, tuple[int, ...]] = {"embed_tokens": (shape["vocab_size"], hidden), "norm": (hidden,)}
    for layer in range(shape["num_hidden_layers"]):
        at = f"layers.{layer}."
        sizes |= {f"{at}{name}": (hidden,) for name in norms}
        sizes |= {
            f"{at}self_attn.q_proj": (query, hidden),
            f"{at}self_attn.k_proj": (key, hidden),
            f"{at}self_attn.v_proj": (key, hidden),
            f"{at}self_attn.o_proj": (hidden, query),
            f"{at}mlp.gate_proj": (ffn, hidden),
            f"{at}mlp.up_proj": (ffn, hidden),
            f"{at}mlp.down_proj": (hidden, ffn),
        }
        if shape["model_type"].startswith("gemma3"):
            sizes |= {f"{at}self_attn.q_norm": (size,), f"{at}self_attn.k_norm": (size,)}
    return {f"{prefix}{name}.weight": random.normal(0, 0.15, dims).astype(np.float32) for name, dims in sizes.items()}


IMAGE, PATCH = 32, 8
"""Height and width of the images that a tiny PaliGemma reads, and of their patches."""


def write_paligemma(folder: Path, generation: str = "1", **changes: Any) -> Path:
    """A random PaliGemma on Gemma 1 or 2, with the keys of transformers 5; `changes` are entries of its text_config.

    The token that stands for an image is the last one, which no text has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = text_shape(write_tokenizer(folder, generation) + 1, generation) | changes
    text["vocab_size"] = -(-text["vocab_size"] // 8) * 8
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": PATCH,
        "projection_dim": text["hidden_size"],
        "vision_use_head": False,
    }
    config = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "dtype": "float32",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": text["vocab_size"] - 1,
        "projection_dim": text["hidden_size"],
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    random = np.random.default_rng(0)
    weights = text_weights(text, "model.language_model.", random) | _vision_weights(vision, random)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _vision_weights(vision: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    hidden, ffn, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tower = "model.vision_tower."
    dense: dict[str, tuple[int, ...]] = {
        "model.multi_modal_projector.linear": (vision["projection_dim"], hidden),
        f"{tower}embeddings.patch_embedding": (hidden, 3, patch, patch),
    }
    norms = [f"{tower}post_layernorm"]
    for layer in range(vision["num_hidden_layers"]):
        at = f"{tower}encoder.layers.{layer}."
        norms += [f"{at}layer_norm1", f"{at}layer_norm2"]
        dense |= {f"{at}self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        dense |= {f"{at}mlp.fc1": (ffn, hidden), f"{at}mlp.fc2": (hidden, ffn)}

    def drawn(dims: tuple[int, ...], mean: float = 0.0) -> Any:
        return random.normal(mean, 0.15, dims).astype(np.float32)

    patches = (vision["image_size"] // patch) ** 2
    found = {f"{tower}embeddings.position_embedding.weight": drawn((patches, hidden))}
    for name, dims in dense.items():
        found |= {f"{name}.weight": drawn(dims), f"{name}.bias": drawn(dims[:1])}
    for name in norms:
        found |= {f"{name}.weight": drawn((hidden,), 1.0), f"{name}.bias": drawn((hidden,))}
    return found
