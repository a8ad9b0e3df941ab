"""What a run's changes leave behind besides the status: a log line, counters and the number of runs by phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from gemmatune_api.names import Phase, Reason
from gemmatune_api.status import Attempt, FineTuneStatus
from gemmatune_operator.board import OTHER, accelerators_of
from gemmatune_operator.observe import Observed
from gemmatune_operator.policies.deleted import DELETED

_PHASES = frozenset(phase.value for phase in Phase)
_CAUSES = frozenset([*(reason.value for reason in Reason), DELETED])

log = structlog.get_logger(__name__)


class Meter(Protocol):
    """Where counts go; metrics.py implements it."""

    def attempt_ended(self, namespace: str, cause: str, accelerator: str, seconds: float, cost: float) -> None:
        """An attempt ended; seconds and cost are those of all its accelerators together."""


class Journal:
    """One per process. A change is noted after the API server took it, so it is counted once, or never after a crash.

    Args:
        meter: where counts go; None counts nothing.
        leads: whether this process leads: of several that see a deletion only one counts it.
    """

    def __init__(self, meter: Meter | None = None, leads: Callable[[], bool] = lambda: True) -> None:
        self._meter, self._leads = meter, leads
        self._runs: dict[tuple[str, str], tuple[str, str]] = {}
        """UID and phase."""

    def phases(self) -> dict[str, int]:
        """Runs by phase, every phase named. Called from the probes' thread."""
        counts = dict.fromkeys([phase.value for phase in Phase], 0)
        for _, phase in list(self._runs.values()):
            counts[phase] = counts.get(phase, 0) + 1
        return counts

    def seen(self, observed: Observed, status: FineTuneStatus) -> None:
        """A run was looked at; this is its status now."""
        phase = status.phase or Phase.PENDING.value
        shown = phase if phase in _PHASES else OTHER
        self._runs[observed.namespace, observed.name] = (observed.uid, shown)

    def forget(self, namespace: str, name: str) -> None:
        """The run is gone."""
        self._runs.pop((namespace, name), None)

    def knows(self, observed: Observed) -> bool:
        """Whether exactly this run was seen and not forgotten since; an earlier process may have counted others."""
        uid, _ = self._runs.get((observed.namespace, observed.name), ("", ""))
        return uid == observed.uid

    def deleted(self, last: Observed, ended: FineTuneStatus | None) -> None:
        """A run that it knows is gone, or only waits to be; `ended` is its last status with the open attempt closed."""
        self.forget(last.namespace, last.name)
        if ended is not None and self._leads():
            self._attempt(last.namespace, ended.attempts[-1], last.status, ended)

    def changed(self, namespace: str, before: FineTuneStatus, after: FineTuneStatus) -> None:
        """The API server has taken a new status."""
        for attempt in _ended(before, after):
            self._attempt(namespace, attempt, before, after)
        if (before.phase, before.reason) != (after.phase, after.reason):
            log.info(
                "transition",
                before=before.phase,
                after=after.phase,
                reason=after.reason,
                message=after.message,
            )

    def _attempt(self, namespace: str, attempt: Attempt, before: FineTuneStatus, after: FineTuneStatus) -> None:
        trained = _active(after) - _active(before)
        kind, count = accelerators_of(before)  # what it had: a suspended run may ask for others by now
        log.info(
            "attempt ended",
            attempt=attempt.number,
            reason=attempt.reason,
            counted=attempt.counted,
            seconds=round(trained, 1),
        )
        if self._meter is not None:
            cause = attempt.reason if attempt.reason in _CAUSES else OTHER
            cost = max(0.0, _spent(after) - _spent(before))
            self._meter.attempt_ended(namespace, cause, kind, max(0.0, trained) * count, cost)


def _ended(before: FineTuneStatus, after: FineTuneStatus) -> list[Attempt]:
    open_before = {attempt.number for attempt in before.attempts if attempt.end_time is None}
    return [attempt for attempt in after.attempts if attempt.number in open_before and attempt.end_time is not None]


def _active(status: FineTuneStatus) -> float:
    return status.timers.active_seconds if status.timers else 0.0


def _spent(status: FineTuneStatus) -> float:
    return status.timers.spent if status.timers else 0.0
