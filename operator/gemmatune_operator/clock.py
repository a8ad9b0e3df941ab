"""The operator's time: the machine's clock, of which a jump is taken in slowly so that it ends no run."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

SLEW = 0.1
"""Seconds per second by which this clock follows the machine's after a jump."""
JUMP_SECONDS = 5.0
"""A difference that counts as a jump and is logged; smaller ones are followed the same way, unnoticed."""

log = structlog.get_logger(__name__)


class SteadyClock:
    """Starts with the machine's clock and moves with its monotonic one.

    Deadlines and stall times compare now with times in the status. A machine's clock that is set an hour forward
    would end every run at once; here it shortens each wait by a tenth at most. A restart takes the machine's clock as
    it is.

    Args:
        wall: seconds since 1970 by the machine's clock.
        steady: seconds that never jump.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._now, self._at = wall(), steady()
        self._behind = 0.0

    def __call__(self) -> datetime:
        """Now, in UTC."""
        at, wall = self._steady(), self._wall()
        passed, self._at = at - self._at, at
        expected = self._now + passed
        behind = wall - expected
        if abs(behind - self._behind) > JUMP_SECONDS:
            log.warning("the machine's clock has jumped", seconds=round(behind - self._behind, 1))
        room = SLEW * passed
        self._now = expected + max(-room, min(room, behind))
        self._behind = wall - self._now
        return datetime.fromtimestamp(self._now, UTC)
