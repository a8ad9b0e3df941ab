"""LoRA on KerasHub's layers, and the same adapter in PEFT's form.

Keras shares one B among the heads of a query, key or value projection. In PEFT's form that is a block-diagonal B of
rank heads x r: an equal function, with more numbers, most of them zero.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from safetensors.numpy import load_file, save_file

from gemmatune_trainer.backends import keras_mesh
from gemmatune_trainer.backends.keras_weights import modules, place_of

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"


class AdapterInvalid(RuntimeError):
    """The adapter that was written is not the one that was trained."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """A layer with LoRA: the published name of its module in the whole model, and Keras's layer."""

    module: str
    layer: Any

    @property
    def heads(self) -> int:
        """Heads that share one B; 1 where the layer has none on its output side."""
        return int(self.layer.lora_kernel_a.shape[0]) if self.layer.equation.split("->")[0].endswith("h") else 1


def attach(backbone: Any, names: tuple[str, ...], rank: int, alpha: int, seed: int, prefix: str) -> list[Adapted]:
    """Freezes the backbone and gives the named modules of the text decoder a fresh adapter in fp32.

    `prefix`: what stands before `layers.0` in the module names of the published model.
    """
    for variable in backbone.variables:  # a layer that is not trainable would hide its adapter too
        variable.trainable = False
    found = []
    for index, block in enumerate(backbone.transformer_layers):
        layers = modules(block)
        for name in names:
            layer = layers[name]
            first = keras.initializers.HeUniform(seed=seed * 1_000_003 + len(found))
            layer.enable_lora(rank, lora_alpha=alpha, a_initializer=first)
            layer.call = types.MethodType(_call, layer)
            found.append(Adapted(f"{prefix}layers.{index}.{place_of(name)}", layer))
    return found


def _call(self: Any, inputs: Any, training: Any = None) -> Any:
    """EinsumDense.call with the adapter beside the kernel.

    Keras adds A B to the kernel, in the kernel's type: in bf16 a small update would vanish there, and each layer would
    make a whole kernel and its gradient.
    """
    taken, given = self.equation.split("->")
    of_inputs, of_kernel = taken.split(",")
    last = of_kernel[-1]
    result = ops.einsum(self.equation, inputs, self._kernel)
    scale = self.lora_alpha / self.lora_rank
    peft = getattr(self, "peft_form", None)
    if peft is not None:
        return result if peft.off else result + scale * _through_peft(inputs, peft, result)
    kind = self.compute_dtype
    between = given.replace(last, "r")
    first = ops.einsum(f"{of_inputs},{of_kernel[:-1]}r->{between}", inputs, ops.cast(self.lora_kernel_a, kind))
    second = ops.einsum(f"{between},r{last}->{given}", first, ops.cast(self.lora_kernel_b, kind))
    return result + scale * second


def _through_peft(inputs: Any, form: _PeftForm, result: Any) -> Any:
    """B A x with the matrices of an adapter's file, as PEFT computes it."""
    first, second = ops.cast(form.a, result.dtype), ops.cast(form.b, result.dtype)
    shape = ops.shape(inputs)
    flat = ops.reshape(inputs, (shape[0], shape[1], first.shape[1]))
    return ops.reshape(ops.matmul(ops.matmul(flat, ops.transpose(first)), ops.transpose(second)), ops.shape(result))


def peft_matrices(a: Any, b: Any, equation: str) -> tuple[Any, Any]:
    """A [rank, in] and B [out, rank] of PEFT from Keras's, whose rank is r: heads x r where heads share B, else r."""
    kernel = equation.split("->")[0].split(",")[1]
    rank = a.shape[-1]
    if kernel == "nhd":  # output projection: both input dimensions are flattened
        return a.reshape(-1, rank).T, b.T
    if len(kernel) == 2:
        return a.T, b.T
    heads, hidden, _ = a.shape
    size = b.shape[1]
    blocks = np.zeros((heads, size, heads, rank), b.dtype)
    for head in range(heads):
        blocks[head, :, head, :] = b.T
    return a.transpose(0, 2, 1).reshape(heads * rank, hidden), blocks.reshape(heads * size, heads * rank)


def snapshot(adapted: list[Adapted]) -> dict[str, Any]:
    """The adapter in Keras's form, in host memory; all processes must ask."""
    found = {}
    for item in adapted:
        found[f"{item.module}.a"] = keras_mesh.host_array(item.layer.lora_kernel_a.value)
        found[f"{item.module}.b"] = keras_mesh.host_array(item.layer.lora_kernel_b.value)
    return found


def restore(adapted: list[Adapted], tensors: Mapping[str, Any]) -> None:
    """Puts what a snapshot holds into the layers. Raises AdapterInvalid where the names differ."""
    wanted = {f"{item.module}.{part}" for item in adapted for part in "ab"}
    if wanted != set(tensors):
        raise AdapterInvalid("the checkpoint holds other tensors than the model's adapter")
    for item in adapted:
        keras_mesh.put(item.layer.lora_kernel_a, tensors[f"{item.module}.a"])
        keras_mesh.put(item.layer.lora_kernel_b, tensors[f"{item.module}.b"])


def export(adapted: list[Adapted], tensors: Mapping[str, Any], base: tuple[str, str | None], folder: Path) -> None:
    """Writes a snapshot as PEFT's adapter: adapter_model.safetensors and adapter_config.json."""
    files, ranks, alphas = {}, {}, {}
    names = list(dict.fromkeys(item.module.rpartition(".")[2] for item in adapted))
    for item in adapted:
        a, b = peft_matrices(tensors[f"{item.module}.a"], tensors[f"{item.module}.b"], item.layer.equation)
        files[f"base_model.model.{item.module}.lora_A.weight"] = np.ascontiguousarray(a)
        files[f"base_model.model.{item.module}.lora_B.weight"] = np.ascontiguousarray(b)
        name = item.module.rpartition(".")[2]
        if item.heads > 1:
            ranks[name], alphas[name] = a.shape[0], item.layer.lora_alpha * item.heads
    first = adapted[0].layer
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base[0],
        "revision": base[1],
        "r": first.lora_rank,
        "lora_alpha": first.lora_alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": _targets(adapted, names),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(files, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _targets(adapted: list[Adapted], names: list[str]) -> list[str] | str:
    """Names of modules; beside a vision tower, whose modules have the same names, an expression for the decoder's."""
    if ".language_model." not in f".{adapted[0].module}":
        return names
    return rf".*language_model\..*\.({'|'.join(names)})"


def read(folder: Path) -> dict[str, Any]:
    """The tensors of an adapter's file, and under "" its settings as bytes."""
    settings = np.frombuffer((folder / SETTINGS).read_bytes(), np.uint8)
    return {**load_file(folder / WEIGHTS), "": settings}


def use_peft_form(adapted: list[Adapted], tensors: dict[str, Any]) -> tuple[list[Any], int]:
    """Lets the layers compute with the matrices of an adapter's files, as `read` gives them.

    Returns:
        The variables that hold them, and how many numbers they are.

    Raises:
        AdapterInvalid: tensors are missing or unexpected, or their scale is not the layer's.
    """
    settings = json.loads(tensors.pop("").tobytes())
    count = sum(int(value.size) for value in tensors.values())
    variables = []
    for item in adapted:
        key = f"base_model.model.{item.module}.lora_"
        try:
            a, b = tensors.pop(f"{key}A.weight"), tensors.pop(f"{key}B.weight")
        except KeyError as error:
            raise AdapterInvalid(f"{WEIGHTS} lacks {error}") from error
        name = item.module.rpartition(".")[2]
        rank = settings["rank_pattern"].get(name, settings["r"])
        scale = settings["alpha_pattern"].get(name, settings["lora_alpha"]) / rank
        if a.shape[0] != rank or scale != item.layer.lora_alpha / item.layer.lora_rank:
            raise AdapterInvalid(f"{item.module} in {WEIGHTS} has rank {a.shape[0]} and scale {scale}")
        # In a holder: a layer would take variables for weights of its own.
        form = _PeftForm(*(keras.Variable(value, trainable=False, dtype="float32") for value in (a, b)))
        object.__setattr__(item.layer, "peft_form", form)
        variables += [form.a, form.b]
    if tensors:
        raise AdapterInvalid(f"{WEIGHTS} has unexpected tensors, such as {next(iter(tensors))}")
    return variables, count


@dataclass(slots=True)
class _PeftForm:
    """The matrices of a module as PEFT has them; `off` leaves them out."""

    a: Any
    b: Any
    off: bool = False


def switch(adapted: list[Adapted], *, off: bool) -> None:
    """Lets what is compiled from now on compute without the adapter's files, or with them again."""
    for item in adapted:
        item.layer.peft_form.off = off
