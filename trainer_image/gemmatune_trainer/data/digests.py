"""A hash of every document, kept in a file: what repeats and what is held out, in memory that does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 8
_TYPE = np.dtype("<u8")
_CHUNK = 1 << 17
"""Digests that are looked at together."""
_DISTINCT = 1 << 18
"""Distinct digests that are counted at a time, about."""
_DIGIT_BITS = 16

Digests = npt.NDArray[np.uint64]


def chunks(path: Path) -> Iterator[Digests]:
    """The digests of a file in order, shape [at most 131,072] each."""
    with path.open("rb") as file:
        while data := file.read(_CHUNK * DIGEST_BYTES):
            yield np.frombuffer(data, dtype=_TYPE)


def count(path: Path) -> int:
    """Digests in a file."""
    return path.stat().st_size // DIGEST_BYTES


def duplicates(path: Path) -> int:
    """Digests that repeat an earlier one.

    They are counted by their highest bits, one group after another, so that no more are in memory than one group has.
    """
    rows = count(path)
    bits = max(0, math.ceil(math.log2(max(1, rows) / _DISTINCT)))
    distinct = 0
    for group in range(1 << bits):
        seen = np.empty(0, dtype=_TYPE)
        for part in chunks(path):
            if bits:
                part = part[part >> np.uint64(64 - bits) == group]
            seen = np.union1d(seen, part)
        distinct += len(seen)
    return rows - distinct


def smallest(path: Path, rank: int) -> int:
    """The digest at place `rank` (from 1) of the sorted digests, found 16 bits at a time."""
    prefix, shift = 0, 64 - _DIGIT_BITS
    while True:
        digits = np.zeros(1 << _DIGIT_BITS, dtype=np.int64)
        for part in chunks(path):
            if shift + _DIGIT_BITS < 64:
                part = part[part >> np.uint64(shift + _DIGIT_BITS) == prefix]
            found = (part >> np.uint64(shift)).astype(np.int64) & ((1 << _DIGIT_BITS) - 1)
            digits += np.bincount(found, minlength=1 << _DIGIT_BITS)
        below = np.cumsum(digits)
        digit = int(np.searchsorted(below, rank))
        rank -= int(below[digit] - digits[digit])
        prefix = prefix << _DIGIT_BITS | digit
        if not shift:
            return prefix
        shift -= _DIGIT_BITS


def held_out(path: Path, fraction: float) -> Iterator[bool]:
    """For each document whether it is kept for evaluation: at least `fraction` of them are, and at least one.

    It depends on the documents alone, not on their order, and equal documents are never on both sides.
    """
    border = smallest(path, math.ceil(max(1.0, fraction * count(path))))
    for part in chunks(path):
        yield from (part <= np.uint64(border)).tolist()
