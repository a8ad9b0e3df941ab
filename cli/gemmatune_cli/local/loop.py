"""The heart of `gft run`: reconcile, Job controller and kubelet take turns over one store until a condition holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemmatune_api import names
from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.local import jobs
from gemmatune_cli.local.cluster import EmbeddedCluster
from gemmatune_cli.local.kubelet import Kubelet
from gemmatune_cli.local.store import Store
from gemmatune_operator.memory import Memory
from gemmatune_operator.ports import Object
from gemmatune_operator.reconcile import reconcile
from gemmatune_operator.settings import Settings

TICK_SECONDS = 0.1
"""Time between two looks at processes and files."""


class Loop:
    """One run in the embedded cluster.

    Args:
        store: holds the resource.
        folder: the run's folder (see Kubelet).
        namespace, name: which resource.
        settings: as an installation would have them.
    """

    def __init__(self, store: Store, folder: Path, namespace: str, name: str, settings: Settings) -> None:
        self._store = store
        self._cluster = EmbeddedCluster(store)
        self._namespace, self._name = namespace, name
        self._settings = settings
        self._memory = Memory()
        self._seen = -1  # version of the store that was reconciled
        self._wake: float | None = None  # by the monotonic clock
        self._status_file_stamp: tuple[int, int] | None = None
        self.kubelet = Kubelet(store, folder)

    @property
    def resource(self) -> Object:
        """The resource as it is now.

        Raises:
            KeyError: it is gone.
        """
        found = self._store.get(names.KIND, self._namespace, self._name)
        if found is None:
            raise KeyError(f"{self._namespace}/{self._name}")
        return found

    @property
    def status(self) -> FineTuneStatus:
        """Its status."""
        return FineTuneStatus.model_validate(self.resource.get("status") or {})

    @property
    def generation(self) -> int:
        """Generation of its spec."""
        return int(self.resource["metadata"]["generation"])

    async def until(self, done: Callable[[FineTuneStatus], bool]) -> FineTuneStatus:
        """Goes on until the status is such; the status.

        Raises:
            LocalError: a process cannot be started here.
        """
        while True:
            # A turn comes first: what an earlier gft left in the status is looked at anew.
            await self.turn()
            if done(self.status):
                return self.status
            await asyncio.sleep(TICK_SECONDS)

    async def turn(self) -> None:
        """One turn of everybody: what processes did becomes status, what the operator wants becomes processes."""
        now = datetime.now(UTC)
        try:
            for pod in self._store.list("Pod"):
                self.kubelet.sync(pod, now)
            # Only after the pods: what a trainer wrote before its end is there when its end is looked at.
            self._take_trainer_status()
            for job in self._store.list("Job"):
                jobs.sync(self._store, job, now)
            await self._reconcile(now)
        finally:
            self._store.save()

    async def _reconcile(self, now: datetime) -> None:
        due = self._wake is not None and time.monotonic() >= self._wake
        if self._store.version == self._seen and not due:
            return
        # What reconcile writes itself is an event too, as it is for a watch: the next turn looks at it.
        self._seen = self._store.version
        seconds = await reconcile(self._cluster, self._namespace, self._name, now, self._settings, memory=self._memory)
        self._wake = None if seconds is None else time.monotonic() + seconds

    def _take_trainer_status(self) -> None:
        """Applies the trainer's four fields from its status file, when the file is another one than before."""
        path = self.kubelet.status_file
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._status_file_stamp or self.status.job is None:
                return
            content: dict[str, Any] = json.loads(path.read_text())
            self._status_file_stamp = stamp
            fields = {name: value for name, value in content.items() if name in names.TRAINER_STATUS_FIELDS}
            meta = {"namespace": self._namespace, "name": self._name}
            resource = {"kind": names.KIND, "metadata": meta, "status": fields}
            self._store.apply_status(resource, names.FIELD_MANAGER_TRAINER)
