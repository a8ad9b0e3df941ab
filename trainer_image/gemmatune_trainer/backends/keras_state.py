"""What the keras backend puts into a checkpoint, and how it gets it back: host arrays in safetensors files.

Keras's own files are never used: `.weights.h5` and `.keras` merge an adapter into its base and forget what is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import load_file, save_file

from gemmatune_trainer.backends import forms
from gemmatune_trainer.backends.base import Snapshot
from gemmatune_trainer.backends.leading import STATE
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.ranks import Ranks

WEIGHTS = "keras-weights-{:05d}.safetensors"
OPTIMIZER = "keras-optimizer-{:05d}.safetensors"
SHARD_BYTES = 5_000_000_000
"""Largest file."""

Arrays = Mapping[str, Any]


def snapshot(trained: Arrays, optimizer: Arrays, step: int) -> Snapshot:
    """Writes host arrays that nothing changes any more, and the step."""

    def write(folder: Path) -> None:
        write_arrays(trained, folder, WEIGHTS)
        write_arrays(optimizer, folder, OPTIMIZER)
        (folder / STATE).write_text(json.dumps({forms.STEP: step}), encoding="utf-8")

    return write


def write_arrays(arrays: Arrays, folder: Path, name: str = WEIGHTS) -> None:
    """Writes arrays into as many files as they need."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(shards(arrays)):
        save_file(shard, folder / name.format(number))


def shards(arrays: Arrays) -> list[dict[str, Any]]:
    """The arrays in groups of at most SHARD_BYTES, one array at least in each; there is at least one group."""
    found: list[dict[str, Any]] = [{}]
    held = 0
    for name, value in arrays.items():
        if found[-1] and held + value.nbytes > SHARD_BYTES:
            found.append({})
            held = 0
        found[-1][name] = np.asarray(value, order="C")
        held += value.nbytes
    return found


def read_arrays(folder: Path, name: str = WEIGHTS) -> dict[str, Any]:
    """What write_arrays wrote; {} where there is nothing of the kind."""
    paths = sorted(folder.glob(name.replace("{:05d}", "*")))
    return {key: value for path in paths for key, value in load_file(path).items()}


def read_weights(folder: Path) -> dict[str, Any]:
    """The trained weights of a folder, which may be of another backend.

    Raises:
        InvalidConfig: there are none.
    """
    found = read_arrays(folder) or forms.left_by_others(folder)
    if not found:
        raise InvalidConfig(f"{folder} holds no weights of any backend", "Create a new resource.")
    return found


def from_main(ranks: Ranks, load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Arrays that rank 0 alone can load, on every process."""
    if ranks.size == 1:
        return load()
    arrays = load() if ranks.main else {}
    outline = ranks.from_main([(name, value.shape, str(value.dtype)) for name, value in arrays.items()])
    found = {}
    for name, shape, kind in outline:
        own = arrays[name] if ranks.main else np.zeros(shape, np.dtype(kind))
        found[name] = np.asarray(multihost_utils.broadcast_one_to_all(own, is_source=ranks.main))
    return found
