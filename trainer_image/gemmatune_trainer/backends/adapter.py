"""The PEFT adapter as files: written with the published checkpoint's keys, and checked after it is reloaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gemmatune_api.catalog import GenerationRules
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.base import Snapshot, Verification
from gemmatune_trainer.backends.whole import deal, gathered
from gemmatune_trainer.ranks import Ranks

WEIGHTS = "adapter_model.safetensors"
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
    settings = copy.deepcopy(model.peft_config["default"])
    settings.inference_mode = True

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        settings.save_pretrained(folder)

    return write


def restore(model: Any, folder: Path, ranks: Ranks) -> None:
    """Loads the adapter of a folder of rank 0 into the model's own, in place, on all processes.

    Raises:
        AdapterInvalid: the keys differ.
    """
    current = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = load_file(folder / WEIGHTS) if ranks.main else {}
    if ranks.main and tensors.keys() != current.keys():
        raise AdapterInvalid(f"{folder / WEIGHTS} holds other tensors than the model's adapter")
    for name in sorted(current):
        deal(ranks, current[name], tensors.get(name))


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
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no mapping
    if not difference <= (0.0 if exact else _TOLERANCE * float(trained.abs().max())):
        raise AdapterInvalid(f"the reloaded adapter's logits differ by {difference:.3g} from the trained model's")
    if not delta > 0:
        raise AdapterInvalid("the adapter changes nothing: its logits equal the base's")
    return Verification(difference, delta, parameters)
