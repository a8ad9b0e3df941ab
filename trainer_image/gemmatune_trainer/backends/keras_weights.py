"""The base model on KerasHub's layers: its shape from config.json, its weights from and to safetensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras_hub
import numpy as np
from keras_hub.src.utils.transformers import convert_gemma, convert_gemma3
from safetensors import safe_open

from gemmatune_trainer.backends import keras_limits, keras_mesh
from gemmatune_trainer.backends.keras_limits import SLIDING, epsilon, rope_of, text_config
from gemmatune_trainer.errors import InvalidConfig

Form = Literal["same", "transposed", "heads", "heads-out", "convolution"]
EMBEDDING = "embed_tokens.weight"
_PATCHES = "embeddings.patch_embedding.weight"
_PROJECTOR = "multi_modal_projector.linear.weight"
_FORMS: Mapping[str, Form] = {"q_proj": "heads", "k_proj": "heads", "v_proj": "heads", "o_proj": "heads-out"}
_BASES = {SLIDING: ("rope_local_base_freq", 10_000.0), "full_attention": ("rope_theta", 1_000_000.0)}
"""Older names of Gemma 3's RoPE bases, and their defaults."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A variable, the key of its tensor in published files, and how the one becomes the other."""

    variable: Any
    key: str
    form: Form

    def to_keras(self, array: Any) -> Any:
        """The tensor of a file in the variable's shape."""
        shape = tuple(self.variable.shape)
        if self.form == "transposed":
            return array.T
        if self.form == "heads":  # [heads x size, hidden] -> [heads, hidden, size]
            heads, hidden, size = shape
            return array.reshape(heads, size, hidden).transpose(0, 2, 1)
        if self.form == "heads-out":  # [hidden, heads x size] -> [heads, size, hidden]
            heads, size, hidden = shape
            return array.reshape(hidden, heads, size).transpose(1, 2, 0)
        if self.form == "convolution":
            return array.transpose(2, 3, 1, 0)
        return array

    def to_file(self, array: Any) -> Any:
        """The variable's value in the shape of published files."""
        if self.form == "transposed":
            return array.T
        if self.form == "heads":
            heads, hidden, size = array.shape
            return array.transpose(0, 2, 1).reshape(heads * size, hidden)
        if self.form == "heads-out":
            heads, size, hidden = array.shape
            return array.transpose(2, 0, 1).reshape(hidden, heads * size)
        if self.form == "convolution":
            return array.transpose(3, 2, 0, 1)
        return array


def build(config: Mapping[str, Any], dtype: str) -> Any:
    """A backbone of the checkpoint's shape with random weights, where the distribution places them.

    Raises:
        InvalidConfig: KerasHub's layers cannot compute what config.json asks for.
    """
    keras_limits.check(config)
    family, text = str(config.get("model_type")), text_config(config)
    if family in ("gemma", "gemma2"):
        backbone = keras_hub.models.GemmaBackbone(
            **convert_gemma.convert_backbone_config(dict(config)), layer_norm_epsilon=epsilon(text), dtype=dtype
        )
    elif family in ("gemma3", "gemma3_text"):
        settings = convert_gemma3.convert_backbone_config({**text, "model_type": "gemma3_text"})
        backbone = keras_hub.models.Gemma3Backbone(**settings, dtype=dtype)
    else:
        backbone = keras_hub.models.PaliGemmaBackbone(**_paligemma(config), dtype=dtype)
    for index, block in enumerate(backbone.transformer_layers):
        _mend(block, index, family, text)
    return backbone


def _mend(block: Any, index: int, family: str, text: Mapping[str, Any]) -> None:
    """Sets what KerasHub's blocks have built in: how queries are scaled, and which layers slide, with which RoPE."""
    attention = block.attention
    # On a TPU they would take Keras's fused attention, which leaves out the cap of scores where the mask is traced.
    attention._use_fused_attention_op = lambda: False
    attention.query_head_dim_normalize = block.query_head_dim_normalize
    kinds = text.get("layer_types")
    if kinds is not None and hasattr(attention, "use_sliding_window_attention"):
        attention.use_sliding_window_attention = kinds[index] == SLIDING
    if family == "paligemma" and attention.use_sliding_window_attention:
        # Image and prefix see each other whole, which the attention's own window would not let them.
        block.window, attention.use_sliding_window_attention = attention.sliding_window_size, False
    if kinds is None or family not in ("gemma3", "gemma3_text"):
        return
    found, kind, factor = rope_of(text, kinds[index])
    name, default = _BASES[kinds[index]]
    attention.rope_layer.max_wavelength = float(found.get("rope_theta") or text.get(name) or default)
    attention.rope_layer.scaling_factor = factor if kind == "linear" else 1.0


def _paligemma(config: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's settings of a PaliGemma; KerasHub's own converter knows the first 3B models alone."""
    text, vision = config["text_config"], config["vision_config"]
    family = str(text.get("model_type", "gemma"))
    filled = {"vocab_size": config.get("vocab_size", 257216), "head_dim": 256, **text, "model_type": family}
    settings = convert_gemma.convert_backbone_config(filled)
    return {
        **settings,
        "layer_norm_epsilon": epsilon(text),
        "image_size": vision.get("image_size", 224),
        "vit_patch_size": vision["patch_size"],
        "vit_num_heads": vision["num_attention_heads"],
        "vit_hidden_dim": vision["hidden_size"],
        "vit_num_layers": vision["num_hidden_layers"],
        "vit_intermediate_dim": vision["intermediate_size"],
    }


class Checkpoint:
    """The safetensors files of a model: which tensor is in which file."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="np") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def prefix(self, suffix: str) -> str:
        """What stands before a key's end: `model.` of `model.embed_tokens.weight`.

        Raises:
            InvalidConfig: no such tensor, or several.
        """
        found = [key.removesuffix(suffix) for key in self.files if key.endswith(suffix)]
        if len(found) != 1:
            raise InvalidConfig(f"the checkpoint has {len(found)} tensors ...{suffix}, expected one")
        return found[0]

    def arrays(self, keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Tensors by key, each file opened once. Raises InvalidConfig for a key that is not there."""
        missing = sorted(keys.keys() - self.files.keys())
        if missing:
            raise InvalidConfig(f"the checkpoint lacks {len(missing)} tensors, such as {missing[0]}")
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for key in keys:
                path = self.files[key]
                if path not in opened:
                    opened[path] = stack.enter_context(safe_open(path, framework="np"))
                yield key, opened[path].get_tensor(key)


def table(backbone: Any, checkpoint: Checkpoint) -> list[Weight]:
    """Every variable of a backbone without adapter, with its tensor in the checkpoint."""
    prefix = checkpoint.prefix(EMBEDDING)
    found = [Weight(backbone.token_embedding.embeddings, f"{prefix}{EMBEDDING}", "same")]
    for index, block in enumerate(backbone.transformer_layers):
        found += _block(block, f"{prefix}layers.{index}.")
    found.append(Weight(backbone.layer_norm.scale, f"{prefix}norm.weight", "same"))
    if has_images(backbone):
        found += _vision(backbone, checkpoint)
    return found


def has_images(backbone: Any) -> bool:
    """Whether it reads images."""
    return hasattr(backbone, "vit_encoder")


def modules(block: Any) -> dict[str, Any]:
    """The linear layers of a block by their published names."""
    attention = block.attention
    return {
        "q_proj": attention.query_dense,
        "k_proj": attention.key_dense,
        "v_proj": attention.value_dense,
        "o_proj": attention.output_dense,
        "gate_proj": block.gating_ffw,
        "up_proj": block.gating_ffw_2,
        "down_proj": block.ffw_linear,
    }


def place_of(name: str) -> str:
    """`self_attn.q_proj` of `q_proj`."""
    return f"{'self_attn' if name in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'}.{name}"


def _block(block: Any, prefix: str) -> Iterator[Weight]:
    yield Weight(block.pre_attention_norm.scale, f"{prefix}input_layernorm.weight", "same")
    if block.use_post_attention_norm:
        yield Weight(block.post_attention_norm.scale, f"{prefix}post_attention_layernorm.weight", "same")
        yield Weight(block.pre_ffw_norm.scale, f"{prefix}pre_feedforward_layernorm.weight", "same")
        yield Weight(block.post_ffw_norm.scale, f"{prefix}post_feedforward_layernorm.weight", "same")
    else:
        yield Weight(block.pre_ffw_norm.scale, f"{prefix}post_attention_layernorm.weight", "same")
    for name, layer in modules(block).items():
        yield Weight(layer._kernel, f"{prefix}{place_of(name)}.weight", _FORMS.get(name, "transposed"))
    if getattr(block.attention, "use_query_key_norm", False):
        yield Weight(block.attention.query_norm.scale, f"{prefix}self_attn.q_norm.weight", "same")
        yield Weight(block.attention.key_norm.scale, f"{prefix}self_attn.k_norm.weight", "same")


def _vision(backbone: Any, checkpoint: Checkpoint) -> Iterator[Weight]:
    encoder = backbone.vit_encoder.get_layer("image_encoder")
    classifier = backbone.vit_encoder.get_layer("image_classifier")
    prefix, projector = checkpoint.prefix(_PATCHES), checkpoint.prefix(_PROJECTOR) + _PROJECTOR.removesuffix("weight")
    patches = encoder.vision_embeddings
    yield Weight(patches.patch_embedding.kernel, f"{prefix}{_PATCHES}", "convolution")
    yield Weight(patches.patch_embedding.bias, f"{prefix}embeddings.patch_embedding.bias", "same")
    yield Weight(patches.position_embedding.embeddings, f"{prefix}embeddings.position_embedding.weight", "same")
    for index, block in enumerate(encoder.resblocks):
        inside = f"{prefix}encoder.layers.{index}."
        for norm, name in ((block.layer_norm_1, "layer_norm1"), (block.layer_norm_2, "layer_norm2")):
            yield Weight(norm.gamma, f"{inside}{name}.weight", "same")
            yield Weight(norm.beta, f"{inside}{name}.bias", "same")
        dense = {
            "self_attn.q_proj": block.attn.query_proj,
            "self_attn.k_proj": block.attn.key_proj,
            "self_attn.v_proj": block.attn.value_proj,
            "self_attn.out_proj": block.attn.out_proj,
            "mlp.fc1": block.mlp_dense_1,
            "mlp.fc2": block.mlp_dense_2,
        }
        for name, layer in dense.items():
            yield Weight(layer.kernel, f"{inside}{name}.weight", "transposed")
            yield Weight(layer.bias, f"{inside}{name}.bias", "same")
    yield Weight(encoder.encoder_layer_norm.gamma, f"{prefix}post_layernorm.weight", "same")
    yield Weight(encoder.encoder_layer_norm.beta, f"{prefix}post_layernorm.bias", "same")
    yield Weight(classifier.kernel, f"{projector}weight", "transposed")
    yield Weight(classifier.bias, f"{projector}bias", "same")


def load(weights: list[Weight], checkpoint: Checkpoint) -> None:
    """Reads every weight of the table from the checkpoint, one tensor in host memory at a time.

    Raises:
        InvalidConfig: a tensor is missing.
    """
    by_key = {weight.key: weight for weight in weights}
    for key, array in checkpoint.arrays(by_key):
        weight = by_key[key]
        keras_mesh.put(weight.variable, np.ascontiguousarray(weight.to_keras(array)))
