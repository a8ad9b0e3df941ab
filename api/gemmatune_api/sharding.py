"""How backend xla divides a weight among chips, along the axes data and model: a rule over names and shapes.

The trainer marks weights by it, and the planner counts by it what a chip holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DATA, MODEL = "data", "model"
Axes = tuple[str, ...] | str | None
"""What a dimension is divided along: both axes, one, or none."""
Spec = tuple[Axes, ...]
"""One entry per dimension."""

SMALL = 1 << 16
"""Numbers below which a trained matrix of an adapter stays whole on every chip: gathering it would cost more."""
_INPUTS_DIVIDED = ("o_proj", "down_proj")
"""Modules whose inputs the chips of a model group divide; of all others, the outputs."""


def whole(shape: Sequence[int]) -> Spec:
    """A copy on every chip."""
    return (None,) * len(shape)


def of_weight(name: str, shape: Sequence[int], data: int, model: int) -> Spec:
    """How a weight of this name and shape is divided among data x model chips.

    Matrices are divided along both axes: outputs (of o_proj and down_proj the inputs) along model, as the groups
    compute them, and the other dimension along data, from which a layer gathers it. Where a dimension cannot be divided
    evenly, the other one takes both. Vectors, and small matrices of an adapter, stay whole.
    """
    if len(shape) != 2 or (".lora_" in name and math.prod(shape) < SMALL):
        return whole(shape)
    first = 1 if any(f".{module}." in name for module in _INPUTS_DIVIDED) and ".lora_" not in name else 0
    if ".lora_" in name:
        first = max((0, 1), key=lambda dimension: shape[dimension])
    order = (first, 1 - first)
    spec: list[Axes] = [None, None]
    for one in order:
        if model > 1 and shape[one] % model == 0 and shape[1 - one] % data == 0:
            spec[one], spec[1 - one] = MODEL, DATA if data > 1 else None
            return tuple(spec)
    largest = sorted((0, 1), key=lambda dimension: -shape[dimension])
    for axes, parts in (((DATA, MODEL), data * model), ((DATA,), data), ((MODEL,), model)):
        for one in largest:
            if parts > 1 and shape[one] % parts == 0:
                spec[one] = axes if len(axes) > 1 else axes[0]
                return tuple(spec)
    return whole(shape)


def held(name: str, shape: Sequence[int], data: int, model: int) -> int:
    """Numbers of a weight that one of data x model chips holds."""
    sizes = {DATA: data, MODEL: model}
    parts = 1
    for axes in of_weight(name, shape, data, model):
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            parts *= sizes[axis]
    return math.prod(shape) // parts
