"""The objects of the embedded cluster as one JSON file, with as much of the API server's ways as a run relies on."""

from __future__ import annotations

import copy
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gemmatune_operator.ports import AlreadyExistsError, ConflictError, Object

Key = tuple[str, str, str]
"""Kind, namespace and name."""
FORMAT = 1
"""Version of the file."""
GRACE_SECONDS = 30
"""Grace period of a pod that names none."""
EVENTS_KEPT = 200
_SLOW_KINDS = ("Job", "Pod")
"""Kinds that stay, marked as being deleted, until their processes have ended."""


class StoreError(Exception):
    """The file cannot be read; the message says what to do."""


def rfc3339(moment: datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def key_of(obj: Object) -> Key:
    """Kind, namespace and name of an object."""
    meta = obj["metadata"]
    return str(obj["kind"]), str(meta.get("namespace") or ""), str(meta["name"])


class Store:
    """Objects by kind, namespace and name. What goes in and comes out is a copy.

    Every write gives the object a new resourceVersion; a new spec gives it a new generation. `spec` and `status` are
    written apart, as through a status subresource.

    Args:
        path: the JSON file; None keeps everything in memory.
        clock: the time for creationTimestamp and deletionTimestamp.
    """

    def __init__(self, path: Path | None, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._clock = clock
        self._objects: dict[Key, Object] = {}
        # Who applied which top-level status field of which object: both managers write whole top-level fields.
        self._managers: dict[str, dict[str, str]] = {}
        self.version = 0
        """The newest resourceVersion; it grows with every change."""
        self._saved = 0
        if path is not None and path.exists():
            self._load(path)

    # --- reading ---

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object; None where it does not exist."""
        found = self._objects.get((kind, namespace, name))
        return copy.deepcopy(found) if found is not None else None

    def list(self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> list[Object]:
        """The objects of a kind (of one namespace, with all these labels), the oldest first."""
        found = []
        for (its_kind, its_namespace, _), obj in self._objects.items():
            if its_kind == kind and namespace in (None, its_namespace):
                own = obj["metadata"].get("labels") or {}
                if all(own.get(label) == value for label, value in (labels or {}).items()):
                    found.append(copy.deepcopy(obj))
        return found

    # --- writing ---

    def create(self, obj: Object) -> Object:
        """Stores a new object; its status is dropped where the kind is one of a status subresource.

        Raises:
            AlreadyExistsError: one of this kind and name exists.
        """
        key = key_of(obj)
        if key in self._objects:
            raise AlreadyExistsError(f"{key[0]} {key[2]} exists")
        new = copy.deepcopy(obj)
        new.pop("status", None)
        meta = new["metadata"]
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = rfc3339(self._clock())
        if "spec" in new:
            meta["generation"] = 1
        self._objects[key] = new
        return self._written(new)

    def write_spec(
        self, kind: str, namespace: str, name: str, spec: Object, annotations: Mapping[str, str] | None = None
    ) -> Object:
        """Replaces the spec, and adds annotations; another spec is another generation.

        Raises:
            KeyError: the object does not exist.
        """
        obj = self._objects[kind, namespace, name]
        if obj.get("spec") != spec:
            obj["spec"] = copy.deepcopy(spec)
            obj["metadata"]["generation"] = obj["metadata"].get("generation", 0) + 1
        if annotations:
            obj["metadata"]["annotations"] = {**(obj["metadata"].get("annotations") or {}), **annotations}
        return self._written(obj)

    def write_status(self, kind: str, namespace: str, name: str, status: Object) -> Object:
        """Replaces the whole status, where it differs; for controllers that own it alone.

        Raises:
            KeyError: the object does not exist.
        """
        obj = self._objects[kind, namespace, name]
        if obj.get("status") == status:
            return copy.deepcopy(obj)
        obj["status"] = copy.deepcopy(status)
        return self._written(obj)

    def apply_status(self, obj: Object, manager: str) -> Object:
        """Server-side apply, with force, of the top-level fields of the status.

        What the manager applied before and leaves out now is erased; what others applied stays. A resourceVersion in
        `obj` must be the current one. A change of nothing gives no new resourceVersion.

        Raises:
            ConflictError: the object does not exist or is another version.
        """
        stored = self._objects.get(key_of(obj))
        meta = obj["metadata"]
        if stored is None:
            raise ConflictError(f"{obj['kind']} {meta['name']} does not exist")
        expected, current = meta.get("resourceVersion"), stored["metadata"]["resourceVersion"]
        if expected is not None and expected != current:
            raise ConflictError(f"{obj['kind']} {meta['name']} is at version {current}, not {expected}")
        managers = self._managers.setdefault(stored["metadata"]["uid"], {})
        applied = obj.get("status") or {}
        status = {
            field: value
            for field, value in (stored.get("status") or {}).items()
            if managers.get(field) != manager or field in applied
        }
        status.update(copy.deepcopy(applied))
        owners = {field: owner for field, owner in managers.items() if field in status}
        self._managers[stored["metadata"]["uid"]] = owners | dict.fromkeys(applied, manager)
        if status == (stored.get("status") or {}):
            return copy.deepcopy(stored)
        stored["status"] = status
        return self._written(stored)

    # --- deleting ---

    def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Deletes the object with exactly this UID; an absent one is no error.

        Jobs and pods are only marked: `remove` takes them away once their process has ended.
        """
        obj = self._objects.get((kind, namespace, name))
        if obj is None or obj["metadata"]["uid"] != uid or obj["metadata"].get("deletionTimestamp"):
            return
        if kind not in _SLOW_KINDS:
            self.remove(kind, namespace, name)
            return
        meta = obj["metadata"]
        grace = obj["spec"].get("terminationGracePeriodSeconds", GRACE_SECONDS) if kind == "Pod" else 0
        if kind == "Pod":
            meta["deletionGracePeriodSeconds"] = grace
        meta["deletionTimestamp"] = rfc3339(self._clock() + timedelta(seconds=grace))
        self._written(obj)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Takes an object away; what it owns is deleted."""
        obj = self._objects.pop((kind, namespace, name), None)
        if obj is None:
            return
        self.version += 1
        uid = obj["metadata"]["uid"]
        self._managers.pop(uid, None)
        for key, other in list(self._objects.items()):
            if any(owner.get("uid") == uid for owner in other["metadata"].get("ownerReferences") or []):
                self.delete(*key, other["metadata"]["uid"])

    # --- events ---

    def record_event(self, about: Object, type_: str, reason: str, message: str) -> None:
        """Records an Event; the oldest give way."""
        meta, now = about["metadata"], rfc3339(self._clock())
        name = f"{meta['name']}.{uuid.uuid4().hex[:12]}"
        involved = {"kind": about["kind"], "namespace": meta.get("namespace"), "name": meta["name"], "uid": meta["uid"]}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": meta.get("namespace") or ""},
            "involvedObject": involved,
            "type": type_,
            "reason": reason,
            "message": message,
            "lastTimestamp": now,
        }
        self.create(event)
        recorded = [key for key in self._objects if key[0] == "Event"]
        for key in recorded[:-EVENTS_KEPT]:
            self.remove(*key)

    # --- the file ---

    def save(self) -> None:
        """Writes the file where anything has changed since the last time; readers see the old one or the new one."""
        if self._path is None or self._saved == self.version:
            return
        content = {
            "format": FORMAT,
            "version": self.version,
            "managers": self._managers,
            "objects": list(self._objects.values()),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(json.dumps(content, indent=1))
        os.replace(part, self._path)
        self._saved = self.version

    def _load(self, path: Path) -> None:
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise StoreError(f"{path} has format {content['format']}, this gft reads {FORMAT}: use the newer gft")
            objects: Iterable[Object] = content["objects"]
            self._objects = {key_of(obj): obj for obj in objects}
            self._managers = content["managers"]
            self.version = self._saved = int(content["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is not what gft wrote ({error!r}): delete the folder to start anew") from error

    def _written(self, obj: Object) -> Object:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(obj)
