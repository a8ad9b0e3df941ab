"""An optimizer's and a schedule's saved state in the form that another optimizer reads: what a run that moves needs.

AdamW comes in two forms: torch's, which backend xla has too, and bitsandbytes', in 8 or 32 bits. The values are the
same, but for the rounding to 8 bits. This module asks for bitsandbytes only to write its form.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_WRAPPED = "__bnb_optimizer_quant_state__"
"""Where bitsandbytes keeps of each weight's state what is not divided as the weight is."""
_BLOCK = 256
"""Numbers of a moment that share a constant in bitsandbytes' 8-bit optimizers."""
_NAMES = {"state1": "exp_avg", "state2": "exp_avg_sq"}
_STEP = "step"

Held = dict[str, Any]
"""The saved state of one weight."""


def of_torch(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved state in torch's form: 8-bit moments become fp32; what is no state of bitsandbytes stays as it is."""
    return {**saved, "state": {number: _plain(held) for number, held in saved["state"].items()}}


def _plain(held: Held) -> Held:
    if not _is_bitsandbytes(held):
        return held
    inner = held.get(_WRAPPED, held)
    found = {name: _dequantised(inner, key) for key, name in _NAMES.items()}
    return {_STEP: torch.tensor(float(held[_STEP])), **found}


def _is_bitsandbytes(held: Held) -> bool:
    return _WRAPPED in held or "state1" in held


def _dequantised(inner: Held, key: str) -> Tensor:
    """A moment in fp32, the value of each code times the constant of its block."""
    stored: Tensor = inner[key]
    if stored.dtype != torch.uint8:
        return stored.float()
    number = key.removeprefix("state")
    codes, constants = inner[f"qmap{number}"].float(), inner[f"absmax{number}"].float()
    of_each = constants.repeat_interleave(_BLOCK)[: stored.numel()]
    return (codes[stored.reshape(-1).long()] * of_each).reshape(stored.shape)


def fitting(saved: dict[str, Any], optimizer: Any) -> tuple[dict[str, Any], bool]:
    """A saved state as `optimizer` reads it, and whether it had another form.

    A state of the optimizer's own form is given back as it is, bit by bit.
    """
    given: dict[int, Held] = saved["state"]
    if all(_is_bitsandbytes(held) == _reads_bitsandbytes(optimizer) for held in given.values()):
        return saved, False
    state = of_torch(saved)["state"]
    if _reads_bitsandbytes(optimizer):
        make = _maker(optimizer)
        places = _places(optimizer)
        state = {number: make(places[number], held) for number, held in state.items()}
    groups = [
        {**{key: value for key, value in own.items() if key != "params"}, **_kept(group)}
        for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    return {"state": state, "param_groups": groups}, True


def _kept(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group keeps: the numbers of its weights, and the learning rate. The rest is the optimizer's own."""
    return {key: group[key] for key in ("params", "lr", "initial_lr") if key in group}


def _reads_bitsandbytes(optimizer: Any) -> bool:
    return any(kind.__module__.startswith("bitsandbytes.") for kind in type(_bare(optimizer)).__mro__)


def _bare(optimizer: Any) -> Any:
    """The optimizer itself, which accelerate may have wrapped."""
    return getattr(optimizer, "optimizer", optimizer)


def _places(optimizer: Any) -> dict[int, tuple[int, int]]:
    """Group and place in it of each weight, by its number in a saved state."""
    places = [(group, place) for group, own in enumerate(optimizer.param_groups) for place in range(len(own["params"]))]
    return dict(zip(itertools.count(), places, strict=False))


def _maker(optimizer: Any) -> Callable[[tuple[int, int], Held], Held]:
    """Writes the form of a bitsandbytes optimizer: small weights, and those that it is told of, stay in 32 bits."""
    from bitsandbytes import functional

    inner = _bare(optimizer)
    inner.check_overrides()
    codes = (functional.create_dynamic_map(signed=True), functional.create_dynamic_map(signed=False))

    def make(place: tuple[int, int], held: Held) -> Held:
        config = inner.get_config(*place, inner.param_groups[place[0]])
        found: Held = {}
        for key, code in zip(_NAMES, codes, strict=True):
            value = held[_NAMES[key]].float().contiguous()
            if config["optim_bits"] != 8 or value.numel() < config["min_8bit_size"]:
                found[key] = value
                continue
            number = key.removeprefix("state")
            found[key], constants = functional.quantize_blockwise(value, code=code, blocksize=_BLOCK)
            found |= {f"qmap{number}": code, f"absmax{number}": constants.absmax}
        return {_STEP: int(held[_STEP]), _WRAPPED: found}

    return make


def widened(saved: dict[str, Any], groups: int) -> dict[str, Any]:
    """A schedule's saved state for an optimizer of `groups` groups.

    Backend xla of release 0.1.0 had a group alone where torch's optimizers have two, all with the same rate.
    """
    return {
        key: value * groups if isinstance(value, list) and len(value) == 1 else value for key, value in saved.items()
    }


def forward(schedule: Any, step: int) -> None:
    """Puts a fresh schedule, which accelerate may have wrapped, where it is after an optimizer step."""
    inner = getattr(schedule, "scheduler", schedule)
    rates = [base * function(step) for base, function in zip(inner.base_lrs, inner.lr_lambdas, strict=True)]
    inner.last_epoch, inner._step_count, inner._last_lr = step, step + 1, rates
    for group, rate in zip(inner.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
