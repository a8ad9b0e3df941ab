"""Rows to batches of one fixed shape for a whole run, so that XLA compiles once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemmatune_api.memory_mesh import padded_length
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.base import Row, Rows
from gemmatune_trainer.backends.keras_mesh import Share
from gemmatune_trainer.data.order import step_rows
from gemmatune_trainer.data.pack import IGNORED, pack


@dataclass(frozen=True, slots=True)
class Batch:
    """Arrays of one forward pass, [sequences, length] unless said otherwise.

    `segments` numbers the documents of a sequence from 1, padding is 0. `prefix` [sequences]: positions from the
    first that attend to each other in both directions. `images` [sequences, height, width, 3] in bytes, or None.
    `counted` [sequences]: those whose tokens this process counts; None where it counts all.
    """

    tokens: Any
    labels: Any
    segments: Any
    prefix: Any
    images: Any = None
    counted: Any = None

    def _of_counted(self, array: Any) -> Any:
        return array if self.counted is None else array[self.counted]

    @property
    def labelled(self) -> int:
        """Positions with a loss."""
        return int((self._of_counted(self.labels)[:, 1:] != IGNORED).sum())

    @property
    def filled(self) -> int:
        """Tokens that are no padding."""
        return int((self._of_counted(self.segments) > 0).sum())


@dataclass(frozen=True, slots=True)
class Shape:
    """Sequences of a forward pass, forward passes of an optimizer step, and tokens of a sequence."""

    sequences: int
    passes: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step, with padding."""
        return self.sequences * self.passes * self.length


class Batches:
    """The batches of a run: which rows, packed how, in which shape.

    A process on one of several hosts reads the rows of its `share` alone: the arrays have the same shape everywhere,
    and sequences that lie on no device of its own are left empty.
    """

    def __init__(
        self,
        config: RunConfig,
        rows: Rows,
        lengths: Sequence[int],
        total_steps: int,
        replicas: int,
        pad_id: int,
        share: Share | None = None,
    ) -> None:
        self._config = config
        self._rows = rows
        self._lengths = lengths
        self._pad_id = pad_id
        self._replicas = replicas
        self._share = share
        self._picture: tuple[int, ...] | None = rows.image(0).shape if hasattr(rows, "image") else None
        self._packing = config.dataset.packing and self._picture is None
        self.length = padded_length(max(lengths), config.dataset.max_length)
        steps = min(total_steps, self._distinct_steps())
        groups = [self._groups(self.chosen(step)) for step in range(steps)]
        most = max((len(found) for found in groups), default=1)
        per_replica = min(config.training.micro_batch_size, -(-most // replicas))
        self.shape = Shape(replicas * per_replica, -(-most // (replicas * per_replica)), self.length)

    @property
    def sequences_each(self) -> int:
        """Sequences of a forward pass in each group of devices along data."""
        return self.shape.sequences // self._replicas

    def _distinct_steps(self) -> int:
        """Steps after which nothing new is looked at: where rows are not packed, all are alike."""
        return 1 << 20 if self._packing else 1

    def chosen(self, step: int) -> list[int]:
        """The rows of optimizer step `step` (from 0)."""
        training = self._config.training
        return step_rows(training.seed, step, len(self._lengths), training.global_batch_size)

    def _groups(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows that share a sequence."""
        if not self._packing:
            return [[row] for row in rows]
        packed = pack([self._lengths[row] for row in rows], self.length)
        return [[rows[place] for place in group] for group in packed]

    def step(self, number: int) -> list[Batch]:
        """The forward passes of step `number` (from 0), as many as in every other."""
        return self._batches(self._groups(self.chosen(number)), self.shape.passes)

    def all(self) -> Iterator[Batch]:
        """Every row once, for an evaluation."""
        size = self._config.training.global_batch_size
        for begin in range(0, len(self._lengths), size):
            groups = self._groups(range(begin, min(begin + size, len(self._lengths))))
            yield from self._batches(groups, -(-len(groups) // self.shape.sequences))

    def _batches(self, groups: list[list[int]], passes: int) -> list[Batch]:
        size = self.shape.sequences
        return [self._batch(groups[number * size : (number + 1) * size]) for number in range(passes)]

    def _batch(self, groups: list[list[int]]) -> Batch:
        shape = (self.shape.sequences, self.length)
        tokens = np.full(shape, self._pad_id, np.int32)
        labels = np.full(shape, IGNORED, np.int32)
        segments = np.zeros(shape, np.int32)
        prefix = np.zeros(shape[:1], np.int32)
        pictures = None if self._picture is None else np.zeros((*shape[:1], *self._picture), np.uint8)
        for index, group in enumerate(groups):
            if self._share is not None and self._group_of(index) not in self._share.held:
                continue
            end = 0
            for number, row in enumerate(group, start=1):
                ids, wanted = self._rows.row(row)
                begin, end = end, end + len(ids)
                tokens[index, begin:end] = ids
                labels[index, begin:end] = wanted
                labels[index, begin] = IGNORED
                segments[index, begin:end] = number
                if pictures is not None:
                    prefix[index] = prefix_of((ids, wanted))
                    pictures[index] = self._rows.image(row)  # type: ignore[attr-defined]
        return Batch(tokens, labels, segments, prefix, pictures, self._counted())

    def _group_of(self, sequence: int) -> int:
        """The group of devices along data on which a sequence lies."""
        return sequence // self.sequences_each

    def _counted(self) -> Any:
        """The sequences that this process counts, as an array of truths; None where there is one process."""
        if self._share is None:
            return None
        return np.array([self._group_of(place) in self._share.counted for place in range(self.shape.sequences)])


def prefix_of(row: Row) -> int:
    """Tokens of a row before the first that is trained."""
    return next((place for place, label in enumerate(row[1]) if label != IGNORED), len(row[1]))


def lengths_of(rows: Rows, number_of_rows: int) -> list[int]:
    """Tokens of every row."""
    known = getattr(rows, "lengths", None)
    return [int(size) for size in known()] if known else [len(rows.row(index)[0]) for index in range(number_of_rows)]
