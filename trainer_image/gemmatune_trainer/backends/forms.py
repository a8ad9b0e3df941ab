"""The adapter of one backend in the form of another: what a run keeps that moves between keras and the others.

Keras shares one B among the heads of a query, key or value projection. In PEFT's form that is a block-diagonal B of
rank heads x r: an equal function, with more numbers, most of them zero. The other way there is none that is smaller
than the weights themselves; so a run that moves trains on the matrices that it finds, in their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from gemmatune_trainer.stored import Shape, of_checkpoint

PEFT_WEIGHTS = "adapter_model.safetensors"
KERAS_WEIGHTS = "keras-weights-*.safetensors"
WHOLE_WEIGHTS = "weights-*.safetensors"
"""Where torch and xla keep the weights of full tuning."""
OTHER_NAMES = (
    "the newest checkpoint was written by another backend, which calls the weights of this model otherwise",
    "Set backend to the one that began the run, or create a new resource.",
)
"""What is said of full tuning where a model's weights cannot move."""
OPTIMIZER = {"torch": "optimizer.pt", "xla": "optimizer.pt", "keras": "keras-optimizer-00000.safetensors"}
"""The file with which each backend's optimizer state begins."""
STATE, STEP = "trainer_state.json", "global_step"
_PREFIX = "base_model.model."
_HEADS_LAST = "o_proj"

Arrays = dict[str, Any]


class _State(Shape):
    global_step: int


def begins_anew(folder: Path, backend: str) -> str:
    """What to say where a backend cannot take over the optimizer of a checkpoint; "" where it can."""
    if (folder / OPTIMIZER[backend]).exists():
        return ""
    writer = "keras" if backend != "keras" else "torch or xla"
    return (
        f"The optimizer began anew after step {step_of(folder)}: the checkpoint was written by backend {writer}, "
        f"whose optimizer state backend {backend} cannot read; weights, step and order of the rows are kept."
    )


def step_of(folder: Path) -> int:
    """Optimizer steps that a saved state has behind it, whichever backend wrote it."""
    with of_checkpoint(folder / STATE):
        return _State.of((folder / STATE).read_bytes()).global_step


def matrices(a: Any, b: Any, name: str) -> tuple[Any, Any]:
    """A [rank, in] and B [out, rank] of PEFT from Keras's, whose rank is r: heads x r where heads share B, else r.

    `name`: the module's, such as q_proj.
    """
    rank = a.shape[-1]
    if name == _HEADS_LAST:  # output projection: both input dimensions are flattened
        return a.reshape(-1, rank).T, b.T
    if a.ndim == 2:
        return a.T, b.T
    heads, hidden, _ = a.shape
    size = b.shape[1]
    blocks = np.zeros((heads, size, heads, rank), b.dtype)
    for head in range(heads):
        blocks[head, :, head, :] = b.T
    return a.transpose(0, 2, 1).reshape(heads * rank, hidden), blocks.reshape(heads * size, heads * rank)


def is_peft(arrays: Mapping[str, Any]) -> bool:
    """Whether tensors are an adapter in PEFT's form, by their names."""
    return any(name.endswith(".lora_A.weight") for name in arrays)


def peft_names(module: str) -> tuple[str, str]:
    """Names of A and B of a module in an adapter's file."""
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def as_peft(arrays: Mapping[str, Any]) -> Arrays:
    """An adapter as PEFT's files name its tensors, from one that keras has left in a checkpoint."""
    if is_peft(arrays):
        return dict(arrays)
    found: Arrays = {}
    for name in arrays:
        module, _, part = name.rpartition(".")
        if part != "a":
            continue
        pair = matrices(arrays[name], arrays[f"{module}.b"], module.rpartition(".")[2])
        found |= {key: np.ascontiguousarray(value) for key, value in zip(peft_names(module), pair, strict=True)}
    return found


def kept(folder: Path) -> Arrays | None:
    """The weights that keras has left in a folder, by its own names; None where it is of another backend."""
    return _all(sorted(folder.glob(KERAS_WEIGHTS)))


def left_by_others(folder: Path) -> Arrays | None:
    """The adapter or weights that torch or xla has left in a folder; None where there are none."""
    return _all([*sorted(folder.glob(WHOLE_WEIGHTS)), *sorted(folder.glob(PEFT_WEIGHTS))])


def _all(paths: list[Path]) -> Arrays | None:
    return {key: value for path in paths for key, value in load_file(path).items()} if paths else None
