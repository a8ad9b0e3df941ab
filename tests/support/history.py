"""Everything that happened to the runs of a test control plane, as watches saw it, with the time of each change."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from gemmatune_api import names
from tests.support.api import Api, Object, Watch

PATHS = {
    names.KIND: f"/apis/{names.API_VERSION}/{names.PLURAL}",
    "Job": "/apis/batch/v1/jobs",
    "Pod": "/api/v1/pods",
    "Event": "/api/v1/events",
}
WATCH_SECONDS = str(4 * 3600)
"""Without it the API server ends a watch after half an hour to an hour: a soak takes longer."""


@dataclass(frozen=True)
class Change:
    """One event of a watch."""

    kind: str
    type: str
    """ADDED, MODIFIED or DELETED."""
    object: Object
    at: float
    """Monotonic seconds at which it was received."""

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def status(self) -> Object:
        status: Object = self.object.get("status") or {}
        return status


Key = tuple[str, str]
"""Namespace and name of a run."""
Holds = Callable[[Change], Any]


class History:
    """Watches resources, Jobs, pods and Events of all namespaces; a context manager."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._changes: dict[Key, list[Change]] = defaultdict(list)
        self._news = threading.Condition()
        self._watches: list[Watch] = []
        self._stopping = False
        self._failure: BaseException | None = None

    def __enter__(self) -> History:
        for kind, path in PATHS.items():
            version = self._api.get(path)["metadata"]["resourceVersion"]
            watch = self._api.watch(path, resourceVersion=version, timeoutSeconds=WATCH_SECONDS)
            self._watches.append(watch)
            threading.Thread(target=self._follow, args=(kind, watch), name=f"history {kind}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        for watch in self._watches:
            watch.close()

    def of(self, run: Key) -> list[Change]:
        """What happened to a run and its objects, in the order in which it was received."""
        with self._news:
            return list(self._changes[run])

    def first(self, run: Key, holds: Holds, what: str, seconds: float = 60.0) -> Change:
        """Waits for the first change of the run or of its objects for which `holds` is true.

        Errors: TimeoutError naming `what` was awaited; RuntimeError where a watch broke.
        """
        deadline, looked = time.monotonic() + seconds, 0
        with self._news:
            while True:
                changes = self._changes[run]
                while looked < len(changes):
                    looked += 1
                    if holds(changes[looked - 1]):
                        return changes[looked - 1]
                rest = deadline - time.monotonic()
                if self._failure is not None:
                    raise RuntimeError(f"the history is not complete: {self._failure}") from self._failure
                if rest <= 0:
                    raise TimeoutError(f"waited {seconds:g} s for {what} of {run}")
                self._news.wait(min(rest, 1.0))

    def _follow(self, kind: str, watch: Watch) -> None:
        try:
            for event in watch:
                at = time.monotonic()
                if event["type"] == "ERROR":
                    raise RuntimeError(f"the watch of {kind} ended: {event['object'].get('message')}")
                change = Change(kind, event["type"], _lean(event["object"]), at)
                run = _run_of(change)
                if run is not None:
                    with self._news:
                        self._changes[run].append(change)
                        self._news.notify_all()
            if not self._stopping:
                raise RuntimeError(f"the watch of {kind} ended")
        except Exception as error:  # noqa: BLE001 - whoever waits shall know
            with self._news:
                self._failure = error
                self._news.notify_all()


def _lean(obj: Object) -> Object:
    obj["metadata"].pop("managedFields", None)
    return obj


def _run_of(change: Change) -> Key | None:
    meta = change.object["metadata"]
    if change.kind == names.KIND:
        return meta["namespace"], meta["name"]
    if change.kind == "Event":
        about = change.object["involvedObject"]
        run = about["name"] if about.get("kind") == names.KIND else names.run_of(about["kind"], about["name"])
        return (about.get("namespace", ""), run) if run else None
    run = (meta.get("labels") or {}).get(names.LABEL_RUN)
    return (meta["namespace"], run) if run else None
