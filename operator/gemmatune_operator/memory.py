"""What one operator process remembers between two looks: since when a run's progress has not moved."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gemmatune_operator.observe import Observed


@dataclass(frozen=True, slots=True)
class _Seen:
    mark: tuple[str | None, int, str]
    since: datetime


class Memory:
    """Starts anew with every process: a restart of the operator gives each run its full time again."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}

    def still_since(self, observed: Observed, now: datetime) -> datetime:
        """Since when Job, step and heartbeat are what they are now, by this process's clock."""
        key = (observed.namespace, observed.name)
        progress = observed.status.progress
        mark = (observed.status.job, progress.step if progress else 0, progress.heartbeat if progress else "")
        seen = self._seen.get(key)
        if seen is None or seen.mark != mark:
            seen = self._seen[key] = _Seen(mark, now)
        return seen.since

    def forget(self, namespace: str, name: str) -> None:
        """The run is gone."""
        self._seen.pop((namespace, name), None)
