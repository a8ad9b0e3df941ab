"""Random states and optimizer states as they go into a checkpoint: of every rank, and whole."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

from gemmatune_trainer.backends.whole import gathered


def random_states() -> dict[str, Any]:
    """The states of all random numbers, as transformers reads them from its file."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states


def random_file(rank: int, size: int) -> str:
    """Name of the file with a rank's random states."""
    return "rng_state.pth" if size == 1 else f"rng_state_{rank}.pth"


def load_random(file: Path) -> dict[str, Any]:
    """Reads a file of random states."""
    with safe_globals():
        states: dict[str, Any] = torch.load(file, weights_only=True)
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Lets all random numbers go on from these states."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.random.set_rng_state(states["cuda"])


def copied(value: Any, known: dict[int, torch.Tensor], *, keep: bool) -> Any:
    """A state in host memory that later steps do not change; `known` keeps tensors that are shared so.

    Parts are gathered, by all ranks; only those that `keep` have the result.
    """
    if isinstance(value, torch.Tensor):
        if id(value) not in known:
            whole = gathered(value.detach())
            known[id(value)] = whole.to("cpu", copy=True) if keep else whole.new_empty(0)
        return known[id(value)]
    if isinstance(value, Mapping):
        return {key: copied(item, known, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item, known, keep=keep) for item in value)
    return value
