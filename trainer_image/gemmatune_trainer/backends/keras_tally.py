"""How often JAX compiles while a training runs, how long that takes, and how much of what is computed is padding."""

from __future__ import annotations

from typing import Any

import jax

from gemmatune_trainer.backends.base import COMPILING_STEPS, Tally
from gemmatune_trainer.logs import log

_COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled, or read from the cache of compiled ones."""


class _Heard:
    """What JAX has told since the process began: its listeners cannot be told apart once they are there."""

    programs, seconds = 0, 0.0


def _listen(event: str, seconds: float, **_: Any) -> None:
    if event == _COMPILED:
        _Heard.programs += 1
        _Heard.seconds += seconds


jax.monitoring.register_event_duration_secs_listener(_listen)


class Counter:
    """Counts over the steps of one training; `first` is the step (from 0) that it goes on from."""

    def __init__(self, first: int) -> None:
        self._may_compile = first + COMPILING_STEPS
        self._programs, self._seconds = _Heard.programs, _Heard.seconds
        self._compiled, self._late, self._compiling = 0, 0, 0.0
        self._computed = self._filled = 0

    def step(self, number: int, computed: int, filled: int) -> None:
        """Step `number` (from 1) is done: of its `computed` tokens `filled` were no padding."""
        programs = _Heard.programs - self._programs
        self._compiled += programs
        self._compiling += _Heard.seconds - self._seconds
        self.leave_out()
        if programs and number > self._may_compile:
            self._late += programs
            log.warning("the step was compiled anew", step=number, compilations=programs)
        self._computed += computed
        self._filled += filled

    def leave_out(self) -> None:
        """What was compiled up to now and not for a step, as for an evaluation, does not count."""
        self._programs, self._seconds = _Heard.programs, _Heard.seconds

    @property
    def tally(self) -> Tally:
        """What was compiled and padded so far."""
        padding = 1.0 - self._filled / self._computed if self._computed else 0.0
        return Tally(self._compiled, self._late, self._compiling, padding)
