"""Kubernetes quantities of bytes: read and written."""

from __future__ import annotations

import re
from decimal import Decimal

KI, MI, GI = 2**10, 2**20, 2**30

_QUANTITY = re.compile(r"^([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[A-Za-z]{0,2})$")
_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


def parse(quantity: str | int) -> Decimal:
    """The number in a quantity: bytes of `16Gi`, cores of `500m`.

    Raises:
        ValueError: it is no quantity of Kubernetes.
    """
    match = _QUANTITY.match(str(quantity))
    if match is None or (match[2] and match[2][0] not in "eE" and match[2] not in _UNITS):
        raise ValueError(f"{quantity!r} is no quantity: write such as 4, 500m or 16Gi")
    number, unit = match.groups()
    if unit in _UNITS:
        return Decimal(number) * _UNITS[unit]
    return Decimal(number + unit)


def text(size: int) -> str:
    """Bytes as the shortest exact quantity with a binary unit, rounded up to whole mebibytes."""
    mebibytes = -(-size // MI)
    return f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"
