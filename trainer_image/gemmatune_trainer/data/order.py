"""Which rows an optimizer step sees: a function of (seed, epoch, step) alone, whatever the split or packing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
Numbers = npt.NDArray[np.uint64]


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Optimizer steps of one pass over `rows` rows: the last partial batch is dropped."""
    return rows // global_batch_size


def step_rows(seed: int, step: int, rows: int, global_batch_size: int) -> list[int]:
    """The row indices of optimizer step `step` (from 0), in order.

    Every epoch visits the rows in an order of its own; within an epoch no row comes twice. Micro-batches are cut from
    this list. Time and memory are those of one step, however many rows there are.

    Raises:
        ValueError: there are fewer rows than one step needs, or `step` is negative.
    """
    if step < 0:
        raise ValueError(f"step is {step}, the first one is 0")
    per_epoch = steps_per_epoch(rows, global_batch_size)
    if per_epoch == 0:
        raise ValueError(f"{rows} rows are fewer than one step of {global_batch_size} rows")
    epoch, index = divmod(step, per_epoch)
    begin = index * global_batch_size
    places = np.arange(begin, begin + global_batch_size, dtype=np.uint64)
    return [int(row) for row in _permuted(places, rows, _keys(seed, epoch))]


def _permuted(places: Numbers, rows: int, keys: Numbers) -> Numbers:
    """What stands at some places of a permutation of 0 .. rows - 1 that is computed, never stored.

    A Feistel network permutes the numbers of an even count of bits, the fewest that hold `rows`; a number that lands
    outside is sent through again until it lands inside, which keeps it a permutation of the rows.
    """
    half = np.uint64(max(1, -(-(rows - 1).bit_length() // 2)))
    found = _feistel(places, half, keys)
    while (outside := found >= rows).any():
        found[outside] = _feistel(found[outside], half, keys)
    return found


def _feistel(numbers: Numbers, half: np.uint64, keys: Numbers) -> Numbers:
    """A permutation of the numbers of 2 x `half` bits; each round mixes one half into the other."""
    mask = np.uint64((1 << int(half)) - 1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << half | right


def _mixed(value: Numbers) -> Numbers:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of the value (modulo 2**64)."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


@lru_cache(maxsize=2)
def _keys(seed: int, epoch: int) -> Numbers:
    """The keys of an epoch's rounds. NumPy promises that SeedSequence gives the same numbers in every version."""
    return np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64)
