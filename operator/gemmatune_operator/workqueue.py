"""A keyed work queue: no key twice in it, none worked on twice at once, with priorities, backoff and delays."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

import structlog

Key = TypeVar("Key", bound=Hashable)

BACKOFF_SECONDS = 1.0
BACKOFF_CAP_SECONDS = 300.0
JITTER = 0.25
QUIET_SECONDS = 0.1
"""How long nothing urgent must have come before patient keys have their turn."""
PATIENCE_SECONDS = 3.0
"""How long a patient key waits for that at most."""
LOOK_AGAIN_SECONDS = 0.05
"""How often an idle worker looks whether it is that quiet."""

log = structlog.get_logger(__name__)


class Priority(IntEnum):
    """Which keys come first."""

    URGENT = 0
    """Something may have to be created: a new resource, a changed spec, a Job that ended."""
    ROUTINE = 1
    """Probably only the status changes."""
    PATIENT = 2
    """What was to be done has been done, and is only to be told: that waits until nothing urgent comes for a moment."""


@dataclass(slots=True)
class _Entry:
    priority: Priority
    since: float


class WorkQueue(Generic[Key]):
    """Calls `handle(key)` for every key that was added, in a bounded number of workers.

    `handle` answers with the seconds after which the key shall come again, a priority with which it shall come again at
    once, or None; when it raises, the key comes again after a growing delay.

    Args:
        handle: the work.
        workers: keys worked on at the same time.
        picked: called with the seconds that a key has waited.
        worked: called with the seconds that the work took, and whether it failed.
        ordinary: failures that happen to a sound program; they are logged without a stack.
    """

    def __init__(
        self,
        handle: Callable[[Key], Awaitable[float | Priority | None]],
        *,
        workers: int,
        picked: Callable[[float], None] = lambda seconds: None,
        worked: Callable[[float, bool], None] = lambda seconds, failed: None,
        ordinary: tuple[type[Exception], ...] = (),
    ) -> None:
        self._handle = handle
        self._workers = workers
        self._picked, self._worked, self._ordinary = picked, worked, ordinary
        self._waiting: dict[Key, _Entry] = {}
        self._active: dict[Key, float] = {}
        self._again: dict[Key, Priority] = {}
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._lines: tuple[dict[Key, None], ...] = tuple({} for _ in Priority)
        self._wakeup = asyncio.Event()
        self._urgent_until = 0.0
        """Until then patient keys wait."""
        self._stopping = False
        self._live = 0

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._waiting)

    @property
    def oldest_work(self) -> float:
        """Seconds that the oldest piece of work under way has taken; 0 where there is none."""
        begun = list(self._active.values())  # a copy: probes ask from another thread
        return time.monotonic() - min(begun) if begun else 0.0

    @property
    def oldest_wait(self) -> float:
        """Seconds that the oldest key has waited for a worker; 0 where none waits."""
        since = [entry.since for entry in list(self._waiting.values())]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def live_workers(self) -> int:
        """Workers that have not ended."""
        return self._live

    @property
    def idle_workers(self) -> int:
        """Workers that have nothing to do."""
        return max(0, self._live - len(self._active))

    def add(self, key: Key, priority: Priority = Priority.ROUTINE) -> None:
        """Adds a key; one that waits already only rises in priority, one that is worked on comes again afterwards."""
        if self._stopping:
            return
        if priority is Priority.URGENT:
            self._urgent_until = time.monotonic() + QUIET_SECONDS
        if key in self._active:
            self._again[key] = min(priority, self._again.get(key, priority))
            return
        entry = self._waiting.get(key)
        if entry is not None and entry.priority <= priority:
            return
        if entry is not None:
            del self._lines[entry.priority][key]
        self._waiting[key] = _Entry(priority, entry.since if entry else time.monotonic())
        self._lines[priority][key] = None
        self._wakeup.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Adds a key later; of several times for one key the earliest holds."""
        if self._stopping:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    async def run(self) -> None:
        """Works until `stop`; what is under way then is finished, what waits is left."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    def stop(self) -> None:
        """Ends `run` once the work under way is done."""
        self._stopping = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._wakeup.set()

    async def _work(self) -> None:
        self._live += 1
        try:
            await self._serve()
        finally:
            self._live -= 1

    async def _serve(self) -> None:
        while True:
            key = self._next()
            if self._stopping:
                return
            if key is None:
                self._wakeup.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wakeup.wait(), LOOK_AGAIN_SECONDS if self._waiting else None)
                continue
            await self._process(key)

    def _next(self) -> Key | None:
        now = time.monotonic()
        for priority, line in zip(Priority, self._lines, strict=True):
            key = next(iter(line), None)
            if key is None or (priority is Priority.PATIENT and not self._has_its_turn(key, now)):
                continue
            del line[key]
            self._active[key] = now
            self._picked(now - self._waiting.pop(key).since)
            return key
        return None

    def _has_its_turn(self, key: Key, now: float) -> bool:
        return now >= min(self._urgent_until, self._waiting[key].since + PATIENCE_SECONDS)

    async def _process(self, key: Key) -> None:
        began, failed = time.monotonic(), False
        wake: float | Priority | None
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        try:
            wake = await self._handle(key)
            self._failures.pop(key, None)
        except self._ordinary as error:
            failed, wake = True, self._failed(key)
            log.warning("look failed", again_in=round(wake, 1), error=str(error))
        except Exception:
            failed, wake = True, self._failed(key)
            log.exception("look failed", again_in=round(wake, 1))
        finally:
            del self._active[key]
        self._worked(time.monotonic() - began, failed)
        again = self._again.pop(key, None)
        if again is not None and not failed:
            self.add(key, again)
        if isinstance(wake, Priority):
            self.add(key, wake)
        elif wake is not None:
            self.add_after(key, wake)

    def _failed(self, key: Key) -> float:
        """Seconds until a key that failed comes again."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return backoff(failures)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)


def backoff(failures: int) -> float:
    """Seconds before a key that has failed so often in a row comes again."""
    delay = min(BACKOFF_CAP_SECONDS, BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16))
    return delay * random.uniform(1 - JITTER, 1 + JITTER)
