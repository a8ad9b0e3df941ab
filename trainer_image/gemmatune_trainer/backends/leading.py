"""Rank 0's backend where there are several processes, and what the others do: rank 0 says what is done together.

Rank 0 tells the story of the run alone; before everything that takes all processes it says so, and the others do the
same. So they never decide anything, and cannot decide otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemmatune_trainer.backends.base import Backend, Rows, Snapshot, Step, Tally, Training, Verification
from gemmatune_trainer.errors import TrainerError
from gemmatune_trainer.ranks import END, Ranks
from gemmatune_trainer.stop import StopFlag

STATE = "trainer_state.json"
GO_ON = "go on"
STOP = "stop"


class Stopped(Exception):
    """Rank 0 has stopped what the processes did together."""


class LeadingBackend:
    """A backend whose work is done by all processes; on rank 0."""

    def __init__(self, backend: Backend, ranks: Ranks, stop: StopFlag, divided: bool) -> None:
        self._backend = backend
        self._ranks = ranks
        self._stop = stop
        self._divided = divided

    def _tell(self, name: str, *arguments: Any) -> None:
        self._ranks.from_main((name, arguments))

    def load(self) -> None:
        """Loads the model on every process."""
        self._tell("load")
        self._ranks.barrier()
        self._backend.load()

    def generate(self, prompt: Sequence[int], new_tokens: int, stop_at: Sequence[int], *image: Any) -> list[int]:
        """Generates: alone where each process has a copy, together where the model is divided."""
        if self._divided:
            self._tell("generate", list(prompt), new_tokens, list(stop_at), *image)
        return self._backend.generate(prompt, new_tokens, stop_at, *image)

    def train(
        self, rows: Rows, number_of_rows: int, total_steps: int, start: Path | None, training: Training
    ) -> Tally | None:
        """Trains on every process."""
        self._tell("train", number_of_rows, total_steps, (start / STATE).read_text("utf-8") if start else None)
        leading = _LeadingTraining(training, self._ranks, self._stop)
        return self._backend.train(rows, number_of_rows, total_steps, start, leading)

    def evaluate(self, rows: Rows, number_of_rows: int, alive: Callable[[], None]) -> tuple[float, int]:
        """Evaluates a part of the rows on every process."""
        self._tell("evaluate", number_of_rows)
        led = _Led(self._ranks, self._stop)
        return self._backend.evaluate(rows, number_of_rows, lambda: led.around(alive))

    def snapshot(self) -> Snapshot:
        """Gathers the state of every process."""
        self._tell("snapshot")
        return self._backend.snapshot()

    def save_weights(self, folder: Path) -> None:
        """Gathers and writes what is trained."""
        self._tell("save_weights")
        self._backend.save_weights(folder)

    def restore_weights(self, folder: Path) -> None:
        """Reads weights and deals them out."""
        self._tell("restore_weights")
        self._backend.restore_weights(folder)

    def save_result(self, folder: Path) -> None:
        """Gathers and writes the result."""
        self._tell("save_result")
        self._backend.save_result(folder)

    def verify(self, folder: Path, row: Sequence[int]) -> Verification:
        """Verifies: alone where each process has a copy, together where the model is divided."""
        if self._divided:
            self._tell("verify", list(row))
        return self._backend.verify(folder, row)


class _Led:
    """Something that rank 0 does while the others wait for whether it goes on."""

    def __init__(self, ranks: Ranks, stop: StopFlag) -> None:
        self._ranks = ranks
        self._stop = stop

    def around(self, work: Callable[[], None]) -> None:
        self._ranks.stopping(self._stop, waiting=True)
        self.then(work)

    def then(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            self._ranks.from_main((STOP, ()))
            raise
        self._ranks.from_main((GO_ON, ()))


class _LeadingTraining:
    """Rank 0's Training: the others hear of what it decides."""

    def __init__(self, training: Training, ranks: Ranks, stop: StopFlag) -> None:
        self._training = training
        self._led = _Led(ranks, stop)

    def micro_batch(self) -> None:
        """Asks all processes whether to stop."""
        self._led.around(self._training.micro_batch)

    def step_done(self, step: Step) -> None:
        """May let all processes do something in between."""
        self._led.then(lambda: self._training.step_done(step))


class Follower:
    """What a process other than rank 0 does: what it is told, until it is told to end."""

    def __init__(
        self,
        backend: Backend,
        ranks: Ranks,
        stop: StopFlag,
        data: Callable[[], tuple[Rows, Rows | None]],
        scratch: Path,
    ) -> None:
        self._backend = backend
        self._ranks = ranks
        self._stop = stop
        self._data = data
        self._scratch = scratch
        self._rows: tuple[Rows, Rows | None] | None = None

    def run(self) -> tuple[TrainerError | None, bool]:
        """Works until rank 0 ends; the error that it ended with, and whether it crashed."""
        while True:
            name, arguments = self._ranks.from_main(None)
            if name == END:
                error, crashed = arguments
                return error, crashed
            with suppress(Stopped):
                if name != STOP:  # of something that has ended here already
                    self._do(name, arguments)

    def micro_batch(self) -> None:
        """Says whether this process shall stop, and hears what is decided."""
        self._ranks.stopping(self._stop, waiting=True)
        self._told()

    def step_done(self, step: Step) -> None:
        """Does what rank 0 wants in between."""
        self._told()

    def _told(self) -> None:
        while True:
            name, arguments = self._ranks.from_main(None)
            if name == GO_ON:
                return
            if name == STOP:
                raise Stopped
            self._do(name, arguments)

    def _do(self, name: str, arguments: tuple[Any, ...]) -> None:
        """One thing that all do together. Files are rank 0's alone: paths of followers lead nowhere."""
        backend, nowhere = self._backend, self._scratch
        if name == "load":
            self._rows = self._data()
            backend.load()
        elif name == "generate":
            backend.generate(*arguments)
        elif name == "train":
            self._train(*arguments)
        elif name == "evaluate":
            assert self._rows is not None
            backend.evaluate(self._rows[1] or self._rows[0], arguments[0], self.micro_batch)
        elif name == "snapshot":
            backend.snapshot()
        elif name == "verify":
            backend.verify(nowhere, arguments[0])
        else:
            getattr(backend, name)(nowhere)

    def _train(self, number_of_rows: int, total_steps: int, state: str | None) -> None:
        assert self._rows is not None
        start = None
        if state is not None:
            start = self._scratch
            shutil.rmtree(start, ignore_errors=True)
            start.mkdir(parents=True)
            (start / STATE).write_text(state, encoding="utf-8")
        self._backend.train(self._rows[0], number_of_rows, total_steps, start, self)
