"""Kubernetes quantities such as 4, 500m and 16Gi, as numbers."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(|[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})", re.ASCII)
_POWERS = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def parse(quantity: str | int) -> Decimal:
    """The number in a quantity: bytes of `16Gi`, cores of `500m`.

    Raises:
        ValueError: it is no quantity of Kubernetes, or negative.
    """
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is no quantity: write such as 4, 500m or 16Gi")
    number, unit = Decimal(match[1]), match[2]
    if unit.endswith("i"):
        return number * Decimal(1024) ** _POWERS[unit[0].replace("K", "k")]
    if unit in _POWERS:
        return number * Decimal(1000) ** _POWERS[unit]
    return number.scaleb(int(unit[1:]))
