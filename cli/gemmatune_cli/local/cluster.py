"""The embedded cluster of `gft run`: the operator's port to a cluster, over the store instead of an API server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gemmatune_api.names import FIELD_MANAGER_OPERATOR
from gemmatune_cli.local.store import Store
from gemmatune_operator.ports import ConflictError, Object

NODE = "localhost"


class EmbeddedCluster:
    """Implements `gemmatune_operator.ports.Cluster`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object; None where it does not exist."""
        return self._store.get(kind, namespace, name)

    async def list_objects(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """The objects of a namespace that carry all these labels."""
        return self._store.list(kind, namespace, labels)

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """The Events that speak of the object with this UID."""
        return [event for event in self._store.list("Event", namespace) if event["involvedObject"]["uid"] == uid]

    async def create(self, obj: Object) -> Object:
        """Creates an object.

        Raises:
            AlreadyExistsError: one of this kind and name exists.
        """
        return self._store.create(obj)

    async def delete(self, kind: str, namespace: str, name: str, uid: str, version: str = "") -> None:
        """Deletes the object with exactly this UID, and version where one is given.

        Raises:
            ConflictError: what has the name is not exactly this one any more.
        """
        found = self._store.get(kind, namespace, name)
        if found is None:
            return
        meta = found["metadata"]
        if meta["uid"] != uid or version not in ("", meta["resourceVersion"]):
            raise ConflictError(f"{kind} {name} has changed")
        self._store.delete(kind, namespace, name, uid)

    async def apply_status(self, obj: Object) -> Object:
        """Applies the operator's fields of the status.

        Raises:
            ConflictError: the resource changed since it was read.
        """
        return self._store.apply_status(obj, FIELD_MANAGER_OPERATOR)

    async def emit(self, resource: Object, type_: str, reason: str, message: str) -> None:
        """Records an Event about a resource."""
        self._store.record_event(resource, type_, reason, message)


def memory_of_machine() -> int:
    """Bytes of memory of this machine, or of the control group that gft runs in where that has less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    for limit in limits:
        text = limit.read_text().strip() if limit.exists() else ""
        if text.isdigit():
            whole = min(whole, int(text))
    return whole


def register_node(store: Store, folder: Path) -> None:
    """Stores this machine as the cluster's node, with the memory and the disk below `folder` that it has to give."""
    allocatable = {
        "cpu": str(os.cpu_count() or 1),
        "memory": str(memory_of_machine()),
        "ephemeral-storage": str(shutil.disk_usage(folder).free),
        "pods": "1",
    }
    if store.get("Node", "", NODE) is None:
        store.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    store.write_status("Node", "", NODE, {"allocatable": allocatable, "capacity": allocatable})
