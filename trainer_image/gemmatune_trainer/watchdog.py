"""The trainer's own watchdog: a process that hangs leaves all its stacks in the log and ends with exit code 31.

The operator has the same limit (limits.stallTimeout), but could only kill from outside: nobody would learn where it
hung. A sign of life is a look at the stop flag, which every loop takes between two pieces of work; a thread that only
ticks would never stall. Work that cannot look (an upload, a reload of the model) is given a long but bounded time.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gemmatune_api.base import duration_text
from gemmatune_api.defaults import FIRST_STEP_STALL_SECONDS
from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import REASONS, ExitCode, Reason
from gemmatune_trainer.logs import log
from gemmatune_trainer.termination import leave

ALIVE_SECONDS = 1.0
"""Shortest time between two heartbeats."""
LONGEST_TICK = 5.0
"""Longest time between two looks at the clock, in seconds."""
LOCKED_SECONDS = 60.0
"""After so much more, the interpreter itself is stuck (native code that holds its lock): the stacks, and exit 1."""


class Watchdog:
    """Watches one attempt.

    Args:
        limit: seconds without a sign of life that are too many; None watches nothing.
        alive: tells others that the process lives (the heartbeat in the status).
        end: what happens in the end; it gets how long nothing was heard, in seconds, and what was being done.
        patience: seconds allowed to the first step and to work that cannot look at the flag, where more than `limit`.
    """

    def __init__(
        self,
        limit: float | None,
        alive: Callable[[], None],
        end: Callable[[float, str, int | None], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience: float = FIRST_STEP_STALL_SECONDS,
    ) -> None:
        self._limit = limit
        self._alive = alive
        self._end = end or stalled
        self._clock = clock
        self._patience = max(patience, limit or 0.0)
        self._last = self._told = clock()
        self._step: int | None = None
        self._work = ""
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begins to watch, in a thread of its own."""
        if self._limit is not None:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A sign of life."""
        self._last = self._clock()
        if self._last - self._told >= ALIVE_SECONDS:
            self._told = self._last
            self._alive()

    def stepped(self, step: int) -> None:
        """An optimizer step was done: from the first one on, `limit` is the limit."""
        self._step = step
        self.beat()

    @contextmanager
    def patiently(self, doing: str) -> Iterator[None]:
        """Work that cannot look at the flag: heartbeats are sent for it, for as long as it is given."""
        self.beat()
        self._work = doing
        try:
            yield
        finally:
            self._work = ""
            self.beat()

    def rest(self) -> float:
        """Seconds until the silence is too long."""
        assert self._limit is not None
        patient = self._work or self._step is None
        return self._last + (self._patience if patient else self._limit) - self._clock()

    def look(self) -> None:
        """One look at the clock."""
        if self.rest() <= 0:
            self._end(self._clock() - self._last, self._work, self._step)
        elif self._work:
            self._alive()

    def _run(self) -> None:
        assert self._limit is not None
        tick = min(LONGEST_TICK, self._limit / 5)
        while not self._stopped.wait(tick):
            faulthandler.dump_traceback_later(max(self.rest(), 0.0) + LOCKED_SECONDS, exit=True)
            self.look()
        faulthandler.cancel_dump_traceback_later()


def stalled(silence: float, work: str, step: int | None) -> None:
    """Ends the process: all stacks to the log, the termination message, exit code 31."""
    where = f"at step {step}" if step is not None else "before the first step"
    doing = f", {work}" if work else ""
    message = f"No sign of life for {duration_text(silence)} {where}{doing}; the pod's log has all stacks."
    log.error("stalled", reason=str(Reason.STALLED), message=message, exit_code=ExitCode.STALLED)
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)
    leave(TerminationMessage(reason=Reason.STALLED, message=message, remedy=REASONS[Reason.STALLED].remedy, step=step))
    os._exit(ExitCode.STALLED)  # no clean-up could be trusted to come to an end
