"""Floating-point work as torch counts it, with the products in place that its counter knows no formula for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

Shape = Sequence[int]
_aten = torch.ops.aten


def _product(into: Shape, one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    """Of [.., rows, inner] and [.., inner, columns]; the addition is not counted, as torch does not count it either."""
    return 2 * math.prod(one) * other[-1]


IN_PLACE = {_aten.addmm_: _product, _aten.baddbmm_: _product}
"""What writes a product into one of its inputs, with the formula of what does not: torch counts nothing for it."""
_PRODUCTS = ("mm", "mv", "dot", "attention", "conv", "linear", "outer", "ger", "addr")
"""Parts of the names of everything that multiplies matrices or vectors."""


def counter() -> FlopCounterMode:
    """A counter of the work of everything within it; `get_total_flops` tells."""
    return FlopCounterMode(display=False, custom_mapping=IN_PLACE)


class Uncounted(TorchDispatchMode):
    """Notes the products within it that `counter` has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        words = str(packet).rpartition(".")[2].strip("_").split("_")
        known = packet in flop_registry or packet in IN_PLACE
        if not known and any(word.endswith(_PRODUCTS) for word in words):
            self.found.add(str(packet))
        return func(*args, **(kwargs or {}))
