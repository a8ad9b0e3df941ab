"""Whether the process does its work: the event loop moves, workers live, no look hangs, no run waits in vain."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import time
from typing import Protocol

import structlog

LOOP_SECONDS = 30.0
"""An event loop that has not moved for so long is blocked."""
LOOK_SECONDS = 300.0
"""A look that takes longer hangs: its requests give up long before."""
WAIT_SECONDS = 300.0
"""A run that waits longer although a worker is free is not served."""
_BEAT_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Work(Protocol):
    """What is looked at of the work queue; read from another thread."""

    @property
    def oldest_work(self) -> float:
        """Seconds of the oldest look under way."""

    @property
    def oldest_wait(self) -> float:
        """Seconds of the oldest key that waits."""

    @property
    def idle_workers(self) -> int:
        """Workers that live and have nothing to do."""

    @property
    def live_workers(self) -> int:
        """Workers that have not ended."""


class Health:
    """The liveness of one process; idle workers are healthy, and so is a standby."""

    def __init__(self, work: Work, workers: int) -> None:
        self._work, self._workers = work, workers
        self._beat = time.monotonic()
        self._told = False
        self.working = False
        """Whether the workers are supposed to live: not on a standby, and not while the process ends."""

    async def beat(self) -> None:
        """The event loop's pulse; for ever."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    def complaint(self) -> str | None:
        """What is wrong; None where all is well. Called from the probes' thread."""
        still = time.monotonic() - self._beat
        if still > LOOP_SECONDS:
            self._tell()
            return f"the event loop has stood still for {still:.0f} s"
        if not self.working:
            return None
        if self._work.live_workers < self._workers:
            return f"{self._workers - self._work.live_workers} of {self._workers} workers have died"
        if self._work.oldest_work > LOOK_SECONDS:
            return f"a look has taken {self._work.oldest_work:.0f} s"
        if self._work.oldest_wait > WAIT_SECONDS and self._work.idle_workers:
            return f"a run has waited for {self._work.oldest_wait:.0f} s although a worker is free"
        return None

    def _tell(self) -> None:
        """Once: where every thread stands, for whoever reads the log after the restart."""
        if not self._told:
            self._told = True
            log.error("the event loop stands still; where each thread is follows")
            faulthandler.dump_traceback(file=sys.stderr)
