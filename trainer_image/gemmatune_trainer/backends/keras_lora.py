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

from gemmatune_trainer.backends import forms, keras_mesh
from gemmatune_trainer.backends.keras_weights import modules, place_of

WEIGHTS = forms.PEFT_WEIGHTS
SETTINGS = "adapter_config.json"
_SEEDS = 2**32
"""JAX takes seeds of 32 bits."""


class AdapterInvalid(RuntimeError):
    """The adapter that was written is not the one that was trained."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """A layer with LoRA: the published name of its module in the whole model, and Keras's layer."""

    module: str
    layer: Any

    @property
    def name(self) -> str:
        """`q_proj`."""
        return self.module.rpartition(".")[2]

    @property
    def block(self) -> str:
        """`decoder_block_3`, as Keras calls the layer."""
        return f"decoder_block_{self.module.partition('layers.')[2].partition('.')[0]}"


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
            first = keras.initializers.HeUniform(seed=(seed * 1_000_003 + len(found)) % _SEEDS)
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


def snapshot(adapted: list[Adapted], *, keep: bool = True) -> dict[str, Any]:
    """The adapter in the form that is trained, in host memory, where `keep`; all processes must ask."""
    values = ((name, variable.value) for name, variable in _variables(adapted).items())
    return dict(keras_mesh.host_arrays(values, keep=keep))


def _variables(adapted: list[Adapted]) -> dict[str, Any]:
    """What is trained, by the names of a snapshot."""
    found = {}
    for item in adapted:
        form = trained_form(item.layer)
        if form is not None:
            found |= dict(zip(forms.peft_names(item.module), (form.a, form.b), strict=True))
        else:
            found |= {f"{item.module}.a": item.layer.lora_kernel_a, f"{item.module}.b": item.layer.lora_kernel_b}
    return found


def trained_form(layer: Any) -> _PeftForm | None:
    """A layer's matrices in PEFT's form, where they are what is trained."""
    found: _PeftForm | None = getattr(layer, "trained_form", None)
    return found


def restore(adapted: list[Adapted], tensors: Mapping[str, Any]) -> None:
    """Puts what a snapshot holds into the layers. Raises AdapterInvalid where the names differ."""
    wanted = _variables(adapted)
    if wanted.keys() != tensors.keys():
        raise AdapterInvalid("the checkpoint holds other tensors than the model's adapter")
    for name, variable in wanted.items():
        keras_mesh.put(variable, tensors[name])


def take_form(adapted: list[Adapted], tensors: Mapping[str, Any]) -> bool:
    """Lets the layers train on matrices in PEFT's form, where another backend began the run, and in their shapes.

    Keras's form of them would be as large as the weights themselves. Whether anything has changed: then what is
    compiled knows other variables, and so would an optimizer.

    Raises:
        AdapterInvalid: tensors are missing.
    """
    if not forms.is_peft(tensors) or not adapted or trained_form(adapted[0].layer) is not None:
        return False
    for item in adapted:
        names = forms.peft_names(item.module)
        if missing := [name for name in names if name not in tensors]:
            raise AdapterInvalid(f"the checkpoint's adapter lacks {missing[0]}")
        pair = [
            keras.Variable(tensors[key], dtype="float32", name=f"{item.block}_{item.name}_lora_{part}")
            for key, part in zip(names, "ab", strict=True)
        ]
        form = _PeftForm(*pair)
        object.__setattr__(item.layer, "trained_form", form)
        object.__setattr__(item.layer, "peft_form", form)
        item.layer.lora_kernel_a.trainable = item.layer.lora_kernel_b.trainable = False
    return True


def trained_variables(adapted: list[Adapted]) -> list[Any] | None:
    """The variables in PEFT's form that are trained; None where those of the layers are."""
    if not adapted or trained_form(adapted[0].layer) is None:
        return None
    return list(_variables(adapted).values())


def largest_rank(tensors: Mapping[str, Any]) -> int:
    """Of the modules in an adapter's file."""
    return max(int(value.shape[0]) for name, value in tensors.items() if name.endswith(".lora_A.weight"))


def export(adapted: list[Adapted], tensors: Mapping[str, Any], base: tuple[str, str | None], folder: Path) -> None:
    """Writes a snapshot as PEFT's adapter: adapter_model.safetensors and adapter_config.json."""
    files, ranks, alphas = forms.as_peft(tensors), {}, {}
    names = list(dict.fromkeys(item.name for item in adapted))
    for item in adapted:
        rank, own = files[forms.peft_names(item.module)[0]].shape[0], item.layer.lora_rank
        if rank != own:
            ranks[item.name], alphas[item.name] = rank, item.layer.lora_alpha * rank // own
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
        try:
            a, b = (tensors.pop(name) for name in forms.peft_names(item.module))
        except KeyError as error:
            raise AdapterInvalid(f"{WEIGHTS} lacks {error}") from error
        rank = settings["rank_pattern"].get(item.name, settings["r"])
        scale = settings["alpha_pattern"].get(item.name, settings["lora_alpha"]) / rank
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
