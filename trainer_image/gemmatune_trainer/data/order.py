"""Which rows an optimizer step sees: a function of (seed, epoch, step) alone, whatever the split or packing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Optimizer steps of one pass over `rows` rows: the last partial batch is dropped."""
    return rows // global_batch_size


def step_rows(seed: int, step: int, rows: int, global_batch_size: int) -> list[int]:
    """The row indices of optimizer step `step` (from 0), in order.

    Every epoch visits the rows in an order of its own; within an epoch no row comes twice. Micro-batches are cut from
    this list in order.

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
    return [int(row) for row in _epoch_order(seed, epoch, rows)[begin : begin + global_batch_size]]


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, rows: int) -> npt.NDArray[np.int64]:
    """The permutation of an epoch.

    Sorted raw draws instead of Generator.permutation: NumPy promises the raw stream of a bit generator and of
    SeedSequence to stay the same between its versions, but not what Generator makes of it, and a run may resume on
    another version.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(rows)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order
