"""What KerasHub's layers cannot compute of a config.json: looked at in prepare too, where no accelerator waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemmatune_api import trainable
from gemmatune_trainer.errors import InvalidConfig

SLIDING = "sliding_attention"
OTHER_BACKEND = "Use backend torch."


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json's part on the text decoder."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def epsilon(text: Mapping[str, Any]) -> float:
    """What norms add below the root."""
    return float(text.get("rms_norm_eps", 1e-6))


def rope_of(text: Mapping[str, Any], kind: str) -> tuple[Mapping[str, Any], str, float]:
    """Of a kind of Gemma 3's layers: its part of rope_parameters, the type of scaling, and the factor."""
    found = (text.get("rope_parameters") or {}).get(kind) or {}
    scaling = found if found else (text.get("rope_scaling") or {}) if kind != SLIDING else {}
    return found, str(scaling.get("rope_type", scaling.get("type", "default"))), float(scaling.get("factor") or 1.0)


def check(config: Mapping[str, Any]) -> None:
    """Refuses what KerasHub's layers have built in otherwise, by config.json alone.

    Raises:
        InvalidConfig: they cannot compute what it asks for.
    """
    family, text = str(config.get("model_type")), text_config(config)
    refused = trainable.type_refused("keras", family)
    if refused is not None:
        raise InvalidConfig(*refused)
    if config.get("tie_word_embeddings", text.get("tie_word_embeddings", True)) is False:
        raise InvalidConfig(
            "config.json says tie_word_embeddings false, and KerasHub's Gemma has one matrix for both",
            OTHER_BACKEND,
        )
    if family == "paligemma":
        _check_paligemma(text, config["vision_config"])
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    scalar = text.get("query_pre_attn_scalar")
    if scalar is not None and float(scalar) not in (float(text.get("head_dim", 256)), float(hidden // heads)):
        raise _otherwise("query_pre_attn_scalar", scalar, "head_dim or hidden_size / num_attention_heads")
    for kind in dict.fromkeys(text.get("layer_types") or []) if family in ("gemma3", "gemma3_text") else ():
        _, found, _ = rope_of(text, kind)
        if found not in ("default", "linear"):
            raise _otherwise(f"rope_type {found!r} of", kind, "default and linear")


def _check_paligemma(text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """PaliGemma's blocks and tower have their numbers built in, as all published models have them."""
    built_in = (
        ("text_config.rms_norm_eps", epsilon(text), 1e-6),
        ("vision_config.layer_norm_eps", vision.get("layer_norm_eps", 1e-6), 1e-6),
        ("vision_config.hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh"),
        ("vision_config.image_size % patch_size", vision.get("image_size", 224) % vision["patch_size"], 0),
    )
    for name, found, wanted in built_in:
        if found != wanted:
            raise InvalidConfig(
                f"config.json says {name} {found}, KerasHub's PaliGemma has {wanted}", "Use a published PaliGemma."
            )


def _otherwise(name: str, found: object, built_in: str) -> InvalidConfig:
    return InvalidConfig(f"config.json says {name} {found}, KerasHub's layers have {built_in}", OTHER_BACKEND)
