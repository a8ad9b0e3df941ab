"""What one operator process remembers between two looks: progress, access objects, and statuses still to be written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from gemmatune_operator.decision import Decision
from gemmatune_operator.observe import Observed

ACCESS_SECONDS = 600.0
"""For so long an access object counts as being there once it was made or seen."""


@dataclass(frozen=True, slots=True)
class _Seen:
    mark: tuple[str | None, int, str]
    since: datetime


class Memory:
    """Starts anew with every process: a restart of the operator gives each run its full time again."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._access: dict[tuple[str, str, str], datetime] = {}
        self._access_locks: dict[str, asyncio.Lock] = {}
        self._planned: dict[tuple[str, str], tuple[str, Decision]] = {}

    def still_since(self, observed: Observed, now: datetime) -> datetime:
        """Since when Job, step and heartbeat are what they are now, by this process's clock."""
        key = (observed.namespace, observed.name)
        progress = observed.status.progress
        mark = (observed.status.job, progress.step if progress else 0, progress.heartbeat if progress else "")
        seen = self._seen.get(key)
        if seen is None or seen.mark != mark:
            seen = self._seen[key] = _Seen(mark, now)
        return seen.since

    def access_lock(self, namespace: str) -> asyncio.Lock:
        """Held by the one look that makes the access objects of a namespace; the others wait for it."""
        return self._access_locks.setdefault(namespace, asyncio.Lock())

    def has_access(self, namespace: str, kind: str, name: str, now: datetime) -> bool:
        """Whether an access object was made or seen by this process not long ago."""
        until = self._access.get((namespace, kind, name))
        return until is not None and now < until

    def saw_access(self, namespace: str, kind: str, name: str, now: datetime) -> None:
        """An access object is there."""
        self._access[namespace, kind, name] = now + timedelta(seconds=ACCESS_SECONDS)

    def forget_access(self, namespace: str, missed: datetime) -> None:
        """Somebody missed an access object of the namespace: what was seen before that may be gone."""
        until = missed + timedelta(seconds=ACCESS_SECONDS)
        for key in [key for key, value in self._access.items() if key[0] == namespace and value <= until]:
            del self._access[key]

    def keep(self, observed: Observed, decision: Decision) -> None:
        """Keeps a decision whose status is written later, when nothing is to be created any more."""
        self._planned[observed.namespace, observed.name] = (observed.resource_version, decision)

    def kept(self, observed: Observed) -> Decision | None:
        """That decision, once, if the resource is still as it was."""
        version, decision = self._planned.pop((observed.namespace, observed.name), ("", None))
        return decision if version == observed.resource_version else None

    def forget(self, namespace: str, name: str) -> None:
        """The run is gone."""
        self._seen.pop((namespace, name), None)
        self._planned.pop((namespace, name), None)
