"""A training that keeps its steps, for tests of a backend."""

from __future__ import annotations

from collections.abc import Callable

from gemmatune_trainer.backends.base import Step


class Watcher:
    """Keeps the steps; `at` is called after each."""

    def __init__(self, at: Callable[[Step], None] = lambda step: None) -> None:
        self.steps: list[Step] = []
        self._at = at

    def micro_batch(self) -> None:
        """Nothing."""

    def step_done(self, step: Step) -> None:
        """Keeps it."""
        self.steps.append(step)
        self._at(step)
