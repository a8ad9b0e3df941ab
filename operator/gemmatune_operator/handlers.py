"""kopf handlers: each notes what it saw in the cache, enqueues the runs that it concerns, and does nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import kopf

from gemmatune_api import names
from gemmatune_operator.cache import SCALED, WARNINGS, Cache, Key, Wake
from gemmatune_operator.login import PAUSE_SECONDS, LoginError, login
from gemmatune_operator.ports import Object
from gemmatune_operator.workqueue import Priority

Enqueue = Callable[[Key, Priority], None]

OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"


def registry(enqueue: Enqueue, cache: Cache, listed: Callable[[], None] = lambda: None) -> kopf.OperatorRegistry:
    """The handlers for the resource, for the Jobs and pods of its runs, and for Events about those.

    `listed` is called for each object that kopf lists: a list tells nobody of what has vanished before it.
    """
    handlers = kopf.OperatorRegistry()

    def wake(wakes: Iterable[Wake]) -> None:
        for key, priority in wakes:
            enqueue(key, priority)

    def take(event: Mapping[str, Any], into: Callable[[str | None, Mapping[str, Any]], list[Wake]]) -> None:
        if event["type"] is None:
            listed()
        wake(into(event["type"], event["object"]))

    async def on_resource(event: Mapping[str, Any], **_: Any) -> None:
        take(event, cache.resource)

    async def on_job(event: Mapping[str, Any], **_: Any) -> None:
        take(event, cache.job)

    async def on_pod(event: Mapping[str, Any], **_: Any) -> None:
        take(event, cache.pod)

    async def on_warning(event: Mapping[str, Any], **_: Any) -> None:
        if event["type"] != "DELETED":
            wake(cache.event(event["object"]))

    async def on_scaling(event: Mapping[str, Any], **_: Any) -> None:
        if event["type"] != "DELETED":
            wake(cache.event(_as_core(event["object"])))

    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=handlers)(on_resource)
    kopf.on.event("batch", "v1", "jobs", registry=handlers)(on_job)
    kopf.on.event("", "v1", "pods", registry=handlers)(on_pod)
    kopf.on.event("", "v1", "events", registry=handlers)(on_warning)
    kopf.on.event("events.k8s.io", "v1", "events", registry=handlers)(on_scaling)
    kopf.on.login(registry=handlers)(_login)
    return handlers


def _as_core(event: Mapping[str, Any]) -> Object:
    """An Event of events.k8s.io as the core API shows the same object.

    Both show all Events, and kopf has one field selector for each: so two selections are watched.
    """
    last = event.get("deprecatedLastTimestamp") or event.get("eventTime")
    return {**event, "involvedObject": event.get("regarding"), "message": event.get("note"), "lastTimestamp": last}


async def _login(**_: Any) -> kopf.ConnectionInfo:
    """kopf reaches the API server as cluster.py does."""
    try:
        found = await login()
    except LoginError as error:
        raise kopf.TemporaryError(str(error), delay=PAUSE_SECONDS) from error
    *scheme, token = str(found.api_key.get("BearerToken") or "").split(" ")
    authority = found.ca_cert_data
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        ca_data=base64.b64encode(authority.encode()).decode() if isinstance(authority, str) else None,
        insecure=not found.verify_ssl,
        scheme=scheme[0].capitalize() if scheme else None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
    )


class _NoChanges(kopf.DiffBaseStorage):  # type: ignore[misc]
    """kopf's memory of what changed since the last handling: unused by handlers of events, and dear to compute."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


class _NoProgress(kopf.ProgressStorage):  # type: ignore[misc]
    """kopf's memory of handlers that it will call again: there are none."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""

    def purge(self, **_: Any) -> None:
        """Nothing was stored."""

    def touch(self, **_: Any) -> None:
        """Nothing is stored."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def settings() -> kopf.OperatorSettings:
    """kopf as a watcher of four kinds, of Events in two selections; it leaves nothing on the objects."""
    found = kopf.OperatorSettings()
    found.watching.label_selectors["batch", "v1", "jobs"] = OURS
    found.watching.label_selectors["", "v1", "pods"] = OURS
    found.watching.field_selectors["", "v1", "events"] = WARNINGS
    found.watching.field_selectors["events.k8s.io", "v1", "events"] = SCALED
    found.watching.chunk_size = 100  # of a list that many bodies are in memory at a time ...
    found.queueing.idle_timeout = 0.5  # ... and each for so long after it was handled: kopf's default is 5 s
    found.persistence.diffbase_storage = _NoChanges()
    found.persistence.progress_storage = _NoProgress()
    found.networking.request_timeout = 30
    found.scanning.disabled = True
    found.posting.enabled = False
    return found
