"""The PEFT adapter as files: written with the published checkpoint's keys, and checked after it is reloaded."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from gemmatune_api.catalog import GenerationRules
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends import forms
from gemmatune_trainer.backends.base import Snapshot, Verification
from gemmatune_trainer.backends.whole import deal, gathered
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.ranks import Ranks

WEIGHTS = forms.PEFT_WEIGHTS
ADAPTER = "default"
"""PEFT's name of the one adapter."""
_FIRST = ".lora_A.weight"
_TOLERANCE = 1e-2
"""Largest difference of logits between two computations of one model on an accelerator."""


class AdapterInvalid(RuntimeError):
    """The adapter that was written is not the one that was trained."""


def lora_config(config: RunConfig, rules: GenerationRules) -> LoraConfig:
    """PEFT's configuration of the run's adapter, its targets always explicit."""
    method = config.method
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=rules.peft_targets(method.target_modules),
        use_dora=method.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def check_dtypes(model: Any) -> None:
    """Makes sure that what is trained is fp32: in bf16 small updates vanish. Raises AdapterInvalid."""
    wrong = [f"{name} is {value.dtype}" for name, value in _trained(model) if value.dtype != torch.float32]
    if wrong or not any(True for _ in _trained(model)):
        raise AdapterInvalid(f"the adapter's weights must be fp32: {wrong[0] if wrong else 'there are none'}")


def _trained(model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def snapshot(model: Any, *, keep: bool = True) -> Snapshot:
    """Copies the adapter; it is written as adapter_config.json and adapter_model.safetensors.

    All processes take part, those that `keep` can write it.
    """
    # Not model.save_pretrained: it asks the hub for the base's vocabulary, and writes a README of its own.
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in sorted(found.items()):
        whole = gathered(value.detach())
        if keep:
            tensors[name] = whole.to("cpu", copy=True).contiguous()
    settings = copy.deepcopy(model.peft_config[ADAPTER])
    settings.inference_mode = True

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        settings.save_pretrained(folder)

    return write


def restore(model: Any, folder: Path, ranks: Ranks) -> None:
    """Loads the adapter of a folder of rank 0 into the model's own, in place, on all processes; also keras's.

    Raises:
        AdapterInvalid: the keys differ.
    """
    tensors = _read(folder) if ranks.main else {}
    _take_shapes(model, ranks, tensors)
    current = get_peft_model_state_dict(model, save_embedding_layers=False)
    if ranks.main and tensors.keys() != current.keys():
        raise AdapterInvalid(f"{folder} holds other tensors than the model's adapter")
    for name in sorted(current):
        deal(ranks, current[name], tensors.get(name))


def _read(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter of a folder in PEFT's form."""
    left = forms.kept(folder)
    if left is None:
        return load_file(folder / WEIGHTS)
    return {name: torch.from_numpy(value) for name, value in forms.as_peft(left).items()}


def _take_shapes(model: Any, ranks: Ranks, tensors: dict[str, torch.Tensor]) -> None:
    """Gives the model's adapter the ranks of the one that is to be loaded: keras shares B among heads, PEFT does not.

    The scale, alpha / rank, stays. Weights whose rank is another become new ones: no optimizer may know the old.
    """
    found = {name: value.shape[0] for name, value in tensors.items() if name.endswith(_FIRST)}
    wanted: dict[str, int] = found if ranks.size == 1 else ranks.from_main(found)
    settings = model.peft_config[ADAPTER]
    for module, layer in model.named_modules():
        rank = wanted.get(f"{module}{_FIRST}")
        if rank is None or not isinstance(layer, LoraLayer) or rank == layer.r[ADAPTER]:
            continue
        alpha = layer.lora_alpha[ADAPTER] * rank / layer.r[ADAPTER]
        first, second = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        first.weight = _like(first.weight, (rank, first.weight.shape[1]))
        second.weight = _like(second.weight, (second.weight.shape[0], rank))
        first.out_features = second.in_features = layer.r[ADAPTER] = rank
        layer.lora_alpha[ADAPTER] = alpha
        name = module.rpartition(".")[2]
        settings.rank_pattern[name] = rank
        settings.alpha_pattern[name] = int(alpha) if alpha == int(alpha) else alpha


def _like(value: torch.nn.Parameter, shape: tuple[int, int]) -> torch.nn.Parameter:
    if isinstance(value, DTensor):
        raise InvalidConfig(
            "the adapter of the checkpoint has other ranks than the run's, as one that keras began has; where GPUs "
            "divide the model among them, it cannot take these",
            "Move the run to one GPU that holds the whole model, or set backend to keras again.",
        )
    return torch.nn.Parameter(torch.zeros(shape, dtype=value.dtype, device=value.device), value.requires_grad)


def check_keys(model: Any, folder: Path) -> None:
    """Makes sure that the file holds exactly the adapter's tensors, equal to those loaded. Raises AdapterInvalid."""
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        names = set(file.keys())
        missing, unexpected = sorted(loaded.keys() - names), sorted(names - loaded.keys())
        if missing or unexpected or not names:
            raise AdapterInvalid(
                f"{folder / WEIGHTS}: {len(missing)} tensors are missing and {len(unexpected)} unexpected "
                f"({', '.join([*missing, *unexpected][:3])})"
            )
        for name in names:
            if not torch.equal(file.get_tensor(name), gathered(loaded[name]).cpu()):
                raise AdapterInvalid(f"{folder / WEIGHTS}: {name} is not what was loaded")


def compare(
    trained: torch.Tensor, reloaded: torch.Tensor, plain: torch.Tensor, exact: bool, folder: Path
) -> Verification:
    """Compares logits of the trained model, the reloaded one, and the base alone.

    `exact`: the same device computes the same bits. Raises AdapterInvalid.
    """
    difference = float((trained - reloaded).abs().max())
    delta = float((reloaded - plain).abs().max())
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    if not difference <= (0.0 if exact else _TOLERANCE * float(trained.abs().max())):
        raise AdapterInvalid(f"the reloaded adapter's logits differ by {difference:.3g} from the trained model's")
    if not delta > 0:
        raise AdapterInvalid("the adapter changes nothing: its logits equal the base's")
    parameters = sum(math.prod(shape) for shape in shapes.values())
    rank = max(shape[0] for name, shape in shapes.items() if name.endswith(_FIRST))
    return Verification(difference, delta, parameters, rank=rank)
