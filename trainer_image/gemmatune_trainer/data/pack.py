"""Packs the rows of one step or micro-batch into sequences, and collates them into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""Label of a position without a loss (PyTorch's and transformers' ignore_index)."""

Row = tuple[Sequence[int], Sequence[int]]
"""A tokenised row: input ids, and labels of the same length (IGNORED where not trained)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Arrays of shape [sequences, length], int64.

    Labels stand at their own token's position (transformers shifts them). There is no attention mask: position_ids
    restart at 0 with every document, and with `use_cache=False` transformers makes block-diagonal masks from that;
    padding is one more document, which nothing is trained on.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]

    @property
    def labelled_tokens(self) -> int:
        """Positions with a loss."""
        return int((self.labels != IGNORED).sum())


def micro_batches(lengths: Sequence[int], size: int, *, by_length: bool) -> list[list[int]]:
    """The rows of one step in groups of `size`, the last one of what is left: every row in exactly one group.

    `by_length` puts rows of about equal length together, the longest first, so that little is padded and a step that
    takes too much memory does so at its first forward pass; equal lengths keep their order.
    """
    order = list(range(len(lengths)))
    if by_length:
        order.sort(key=lambda row: -lengths[row])
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Sequences of row indices whose lengths sum to at most `capacity` each: first fit, longest rows first.

    Every row is in exactly one sequence and none is split; equal lengths keep their order.

    Raises:
        ValueError: a row is empty or longer than the capacity.
    """
    sequences: list[list[int]] = []
    free: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[row]
        if not 0 < length <= capacity:
            raise ValueError(f"row {row} has {length} tokens, a sequence takes 1 to {capacity}")
        place = next((index for index, space in enumerate(free) if length <= space), None)
        if place is None:
            sequences.append([row])
            free.append(capacity - length)
        else:
            sequences[place].append(row)
            free[place] -= length
    return sequences


def collate(rows: Sequence[Row], sequences: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Batch:
    """Arrays of packed (`pack`) or single rows (`[[0], [1], ...]`), padded to `length` (default: the longest).

    The first token of each document gets no label: its prediction would come from the document before it.

    Raises:
        ValueError: a sequence is longer than `length`.
    """
    sizes = [sum(len(rows[row][0]) for row in sequence) for sequence in sequences]
    width = max(sizes, default=0) if length is None else length
    if max(sizes, default=0) > width:
        raise ValueError(f"a sequence has {max(sizes)} tokens, at most {width} fit")
    shape = (len(sequences), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    for index, sequence in enumerate(sequences):
        end = 0
        for row in sequence:
            ids, row_labels = rows[row]
            begin, end = end, end + len(ids)
            input_ids[index, begin:end] = ids
            labels[index, begin:end] = row_labels
            labels[index, begin] = IGNORED
            position_ids[index, begin:end] = np.arange(len(ids))
        position_ids[index, end:] = np.arange(width - end)
    return Batch(input_ids, labels, position_ids)
