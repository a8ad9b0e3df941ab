"""What the reconcile loop needs of a cluster: a protocol; cluster.py and gft's embedded cluster implement it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


class AlreadyExistsError(Exception):
    """An object of that kind and name exists (409 at creation)."""


class ConflictError(Exception):
    """The object changed since it was read (409 at a write): read it and plan again."""


class RefusedError(Exception):
    """The API server refused a write for good (400, 403, 422); its message says why."""


class UnavailableError(Exception):
    """The API server did not answer or asked to come back later."""


class Cluster(Protocol):
    """Dicts in, dicts out, by kind: GemmaFineTune, Job, Pod, Node, ConfigMap, Service, and the access objects."""

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, read live; None where it does not exist."""

    async def list_objects(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """The objects of a namespace that carry all these labels, read live."""

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """The Events that speak of the object with this UID."""

    async def create(self, obj: Object) -> Object:
        """Creates an object.

        Raises:
            AlreadyExistsError, RefusedError, UnavailableError.
        """

    async def delete(self, kind: str, namespace: str, name: str, uid: str, version: str = "") -> None:
        """Deletes the object with exactly this UID, its dependents first; an absent one is no error.

        `version` is the resourceVersion that it must still have; a newer one stays.

        Raises:
            ConflictError: what has the name is not exactly this one any more.
            RefusedError, UnavailableError.
        """

    async def apply_status(self, obj: Object) -> Object:
        """Server-side apply of `status` as the operator; obj carries the resourceVersion it was planned from.

        Raises:
            ConflictError, RefusedError, UnavailableError.
        """

    async def emit(self, resource: Object, type_: str, reason: str, message: str) -> None:
        """Records an Event about a resource; never fails the caller."""
