"""The planner's counts against transformers, PEFT and autograd: weights, adapter weights, bytes kept for the backward.

Models of real size stand on the meta device, which has shapes and no memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from gemmatune_api import catalog, memory  # noqa: E402
from gemmatune_api.memory import Setting  # noqa: E402
from gemmatune_trainer.backends import fused  # noqa: E402
from gemmatune_trainer.backends.forward import packed_hidden  # noqa: E402

TEXT_CLASSES = {
    "gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "gemma3n_text": ("Gemma3nTextConfig", "Gemma3nForCausalLM"),
    "gemma4_text": ("Gemma4TextConfig", "Gemma4ForCausalLM"),
}
FAMILIES = {"gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text"}


def text_config(model: catalog.GemmaModel) -> Any:
    """transformers' config of a catalog model's text decoder."""
    family = FAMILIES.get(model.family, model.family)
    numbers: dict[str, Any] = {
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.ffn,
        "vocab_size": model.vocab,
        "use_cache": False,
    }
    if model.sliding_window:
        numbers["sliding_window"] = model.sliding_window
    if model.global_every:
        kinds = ("sliding_attention", "full_attention")
        numbers["layer_types"] = [kinds[model.is_global(layer)] for layer in range(model.layers)]
    if family in ("gemma3n_text", "gemma4_text"):
        numbers |= {
            "hidden_size_per_layer_input": model.ple_width,
            "num_kv_shared_layers": model.shared_kv_layers,
        }
    if family == "gemma3n_text":
        numbers["activation_sparsity_pattern"] = None
    if family == "gemma4_text":
        numbers |= {
            "global_head_dim": model.global_head_dim,
            "num_global_key_value_heads": model.global_kv_heads,
            "attention_k_eq_v": model.value_is_key,
            "use_double_wide_mlp": model.wide_shared_ffn,
            "enable_moe_block": bool(model.experts),
            "num_experts": model.experts or None,
            "moe_intermediate_size": model.expert_ffn or None,
            "top_k_experts": model.experts_per_token or None,
        }
    return getattr(transformers, TEXT_CLASSES[family][0])(**numbers)


def on_meta(model: catalog.GemmaModel) -> Any:
    """The text decoder with its head, without memory."""
    family = FAMILIES.get(model.family, model.family)
    with torch.device("meta"):
        return getattr(transformers, TEXT_CLASSES[family][1])(text_config(model))


def counted(module: Any) -> int:
    return sum(value.numel() for value in module.parameters())


def adapter_of(module: Any, rank: int, targets: list[str], **options: Any) -> int:
    config = peft.LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM", **options)
    adapted = peft.get_peft_model(module, config, low_cpu_mem_usage=True)
    return sum(value.numel() for value in adapted.parameters() if value.requires_grad)


def test_the_trainer_works_as_the_planner_counts() -> None:
    from gemmatune_trainer.backends import forward

    assert (memory.HEAD_CHUNK, memory.WIDE_LOGITS) == (forward.CHUNK_ROWS, forward.WIDE_LOGITS)


NAMES = [
    "gemma-2b",
    "gemma-2-2b",
    "gemma-3-270m",
    "gemma-3-4b",
    "gemma-3n-e2b",
    "gemma-4-e2b",
    "gemma-4-e4b",
    "gemma-4-26b-a4b",
    "gemma-4-31b",
]


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_transformers_and_peft(name: str) -> None:
    model = catalog.by_name(name)
    assert model is not None
    module = on_meta(model)
    scalars = model.layers if model.layer_scalar else 0  # buffers in transformers, counted with the checkpoint
    assert counted(module) == model.text_parameters - scalars
    linear = sum(part.weight.numel() for part in module.model.modules() if isinstance(part, torch.nn.Linear))
    assert linear == model.quantisable
    for rank, preset in ((8, "all-linear"), (64, "attention")):
        fresh = on_meta(model)
        assert adapter_of(fresh, rank, list(catalog.target_names(preset))) == model.trainable(rank, preset)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_counts_of_a_tiny_shape_by_its_own_config(model_type: str) -> None:
    config_class, model_class = TEXT_CLASSES[model_type]
    config = getattr(transformers, config_class)(
        num_hidden_layers=3,
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=500,
    )
    found = catalog.by_config(config.to_dict())
    assert found is not None
    module = getattr(transformers, model_class)(config)
    assert (found.name, found.parameters) == ("", counted(module))
    assert adapter_of(module, 4, ["q_proj", "down_proj"], use_dora=True) == found.trainable(
        4, ["q_proj", "down_proj"], dora=True
    )


@pytest.mark.parametrize("kind", ["3n", "4", "4-images"])
def test_counts_of_what_transformers_writes_today(kind: str, tiny_model: Callable[[str], Path]) -> None:
    """Heads that differ in single layers stand there by layer; a plan reads them as prepare hands them over."""
    config = json.loads((tiny_model(kind) / "config.json").read_text())
    for read in (config, catalog.planner_shape(config)):
        found = catalog.by_config(read)
        assert found is not None
        module = getattr(transformers, found.model_class).from_pretrained(tiny_model(kind))
        decoder = getattr(module.model, "language_model", module.model)
        scalars = found.layers if found.layer_scalar else 0
        assert found.text_parameters - scalars == counted(decoder)


def kept_bytes(model: catalog.GemmaModel, setting: Setting) -> int:
    """Bytes of the distinct tensors that autograd keeps in one packed forward pass under autocast, without weights."""
    config = text_config(model)
    config._attn_implementation = model.rules.attention
    module = getattr(transformers, TEXT_CLASSES[model.family][1])(config)
    dtype = torch.bfloat16 if setting.activation_bytes == 2 else torch.float32
    tuned = module
    if setting.method == "lora":
        module = module.to(dtype)
        targets = list(catalog.target_names(setting.targets))
        tuned = peft.get_peft_model(module, peft.LoraConfig(r=setting.rank, target_modules=targets))
        fused.install(tuned)
    weights = {value.data_ptr() for value in module.parameters()}
    alive: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if tensor.data_ptr() not in weights:
            alive[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, model.vocab, (setting.rows, setting.length))
    positions = torch.arange(setting.length).expand(setting.rows, -1)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        hidden = packed_hidden(tuned, ids, positions)
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in alive.values())


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-2b", "gemma-3-270m"])
def test_bytes_that_a_layer_keeps_are_those_of_autograd(name: str, precision: str, method: memory.MethodKind) -> None:
    """The difference of two depths is one layer's; the shape is a small one of the same proportions."""
    model = catalog.by_name(name)
    assert model is not None
    small = replace(model, hidden=96, heads=4, kv_heads=2, head_dim=32, ffn=320, vocab=64, global_every=0)
    setting = Setting(
        method=method,
        rows=2,
        length=96,
        checkpointing=False,
        rank=4,
        precision="bf16" if precision == "bf16" else "fp32",
        device="cpu",
    )
    found = kept_bytes(replace(small, layers=4), setting) - kept_bytes(replace(small, layers=2), setting)
    copies = [memory.autocast_copies(replace(small, layers=layers), setting) for layers in (4, 2)]
    expected = 2 * memory.layer_activations(small, setting, 0) + copies[0] - copies[1]
    assert expected == pytest.approx(found, rel=0.12)
