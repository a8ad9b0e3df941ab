"""Batches of one shape for the whole run: what a compiler for accelerators wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.base import Row, Rows
from gemmatune_trainer.data.order import step_rows
from gemmatune_trainer.data.pack import Batch, collate, pack

LOOKED_AT = 64
"""Steps whose rows tell how many sequences a step takes."""


@dataclass(frozen=True, slots=True)
class FixedStep:
    """One optimizer step: passes of equal shape, its tokens without padding, and those that are labelled."""

    passes: list[Batch]
    tokens: int
    labelled: int


class FixedBatches:
    """The passes of every step: `sequences` x `length` tokens each, of which a step takes as many as its rows fill.

    Rows of a step are a function of (seed, epoch, step) alone. Documents share a sequence with packing, and have one
    each without; what is left of a sequence or a pass is padding, on which nothing is trained.
    """

    def __init__(self, config: RunConfig, rows: Rows, number_of_rows: int, total_steps: int, groups: int, pad_id: int):
        """`groups`: how many groups of chips divide a pass; each takes at most training.microBatchSize sequences."""
        self._training = config.training
        self._packing = config.dataset.packing
        self._rows = rows
        self._number_of_rows = number_of_rows
        self._total_steps = total_steps
        self._pad_id = pad_id
        self.length = config.dataset.max_length
        self._groups = groups
        self.sequences = groups
        self.fit([self._step_rows(step) for step in range(min(total_steps, LOOKED_AT))])

    def fit(self, steps: Sequence[Sequence[Row]]) -> None:
        """Makes passes as large as the rows of these steps fill, and no larger than the run allows."""
        most = max((len(self._sequences(rows)) for rows in steps), default=1)
        self.sequences = self._groups * min(self._training.micro_batch_size, -(-most // self._groups))

    @property
    def sequences_each(self) -> int:
        """Sequences of a pass in each group of chips."""
        return self.sequences // self._groups

    def _step_rows(self, step: int) -> list[Row]:
        training = self._training
        chosen = step_rows(training.seed, step, self._number_of_rows, training.global_batch_size)
        return [self._rows.row(index) for index in chosen]

    def _sequences(self, rows: Sequence[Row]) -> list[list[int]]:
        if not self._packing:
            return [[index] for index in range(len(rows))]
        return pack([len(ids) for ids, _ in rows], self.length)

    def step(self, number: int) -> FixedStep:
        """Step `number`, from 0."""
        return self.of(self._step_rows(number))

    def of(self, rows: Sequence[Row]) -> FixedStep:
        """The passes of these rows."""
        sequences = self._sequences(rows)
        passes = []
        for begin in range(0, len(sequences), self.sequences):
            part = sequences[begin : begin + self.sequences]
            empty: list[list[int]] = [[] for _ in range(self.sequences - len(part))]
            passes.append(collate(rows, [*part, *empty], self._pad_id, self.length))
        return FixedStep(passes, sum(len(ids) for ids, _ in rows), sum(batch.labelled_tokens for batch in passes))

    def steps(self, first: int) -> Iterator[FixedStep]:
        """All steps from `first` on; while one trains, the next is made in the background."""
        numbers = range(first, self._total_steps)
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as worker:
            ahead = [worker.submit(self.step, number) for number in numbers[:1]]
            for number in numbers:
                found = ahead.pop().result()
                if number + 1 in numbers:
                    ahead.append(worker.submit(self.step, number + 1))
                yield found
