"""kopf handlers: each puts a run's key into the work queue and does nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from gemmatune_api import names
from gemmatune_operator.cluster import login
from gemmatune_operator.workqueue import Priority

Key = tuple[str, str]
"""Namespace and name of a resource."""
Enqueue = Callable[[Key, Priority], None]

OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
TELLING = frozenset({"FailedCreate", "FailedMount", "FailedAttachVolume", "FailedScaleUp"})
"""Events that tell what no object's status does."""
_NOISE = ("FailedScheduling", "BackOff", "Failed", "Unhealthy", "FailedGetResourceMetric", "NodeNotReady")
WARNINGS = ",".join(["type=Warning", f"involvedObject.kind!={names.KIND}", *(f"reason!={reason}" for reason in _NOISE)])
"""The Events worth a watch. A field selector knows no "or", so the API server leaves out what clusters have most of and
what a pod's status tells as well; the rest is looked through here."""


class Seen:
    """What was last seen of each resource that can change what is to be done; all else is progress."""

    def __init__(self) -> None:
        self._marks: dict[Key, tuple[Any, ...]] = {}

    def news(self, event: Mapping[str, Any]) -> Priority | None:
        """How urgent a look is; None where only the status has changed (the operator's own write, or progress)."""
        body = event["object"]
        meta = body.get("metadata") or {}
        key = (str(meta.get("namespace")), str(meta.get("name")))
        if event.get("type") == "DELETED":
            self._marks.pop(key, None)
            return Priority.ROUTINE
        annotations = meta.get("annotations") or {}
        mark = (
            meta.get("uid"),
            meta.get("generation"),
            annotations.get(names.ANNOTATION_RETRY),
            meta.get("deletionTimestamp"),
        )
        if self._marks.get(key) == mark and event.get("type") == "MODIFIED":
            return None
        listed_again = self._marks.get(key) == mark
        self._marks[key] = mark
        return Priority.ROUTINE if listed_again or body.get("status") else Priority.URGENT

    def concerns(self, event: Mapping[str, Any]) -> Key | None:
        """The run that an Event (the Kubernetes object) tells of; None where it tells none of ours anything."""
        about = event.get("involvedObject") or {}
        run = names.run_of(str(about.get("kind")), str(about.get("name")))
        key = (str(about.get("namespace")), run or "")
        return key if event.get("reason") in TELLING and key in self._marks else None


def registry(enqueue: Enqueue) -> kopf.OperatorRegistry:
    """The handlers for the resource, for the Jobs and pods of its runs, and for Events about these."""
    handlers = kopf.OperatorRegistry()
    seen = Seen()

    async def on_resource(event: Mapping[str, Any], namespace: str, name: str, **_: Any) -> None:
        priority = seen.news(event)
        if priority is not None:
            enqueue((namespace, name), priority)

    async def on_job(labels: Mapping[str, str], namespace: str, status: Mapping[str, Any], **_: Any) -> None:
        if names.LABEL_RUN in labels:
            ending = any(item.get("type") in _ENDS for item in status.get("conditions") or [])
            enqueue((namespace, labels[names.LABEL_RUN]), Priority.URGENT if ending else Priority.ROUTINE)

    async def on_pod(labels: Mapping[str, str], namespace: str, **_: Any) -> None:
        if names.LABEL_RUN in labels:
            enqueue((namespace, labels[names.LABEL_RUN]), Priority.ROUTINE)

    async def on_warning(event: Mapping[str, Any], **_: Any) -> None:
        key = seen.concerns(event["object"]) if event.get("type") != "DELETED" else None
        if key is not None:
            enqueue(key, Priority.ROUTINE)

    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=handlers)(on_resource)
    kopf.on.event("batch", "v1", "jobs", registry=handlers)(on_job)
    kopf.on.event("v1", "pods", registry=handlers)(on_pod)
    kopf.on.event("", "v1", "events", registry=handlers)(on_warning)
    kopf.on.login(registry=handlers)(_login)
    return handlers


async def _login(**_: Any) -> kopf.ConnectionInfo:
    """kopf reaches the API server as cluster.py does."""
    found = await login()
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


_ENDS = frozenset({"Complete", "Failed", "FailureTarget"})


def settings() -> kopf.OperatorSettings:
    """kopf as a watcher of four kinds: no finalizers, no annotations, no Events, no scanning."""
    found = kopf.OperatorSettings()
    found.watching.label_selectors["batch", "v1", "jobs"] = OURS
    found.watching.label_selectors["", "v1", "pods"] = OURS
    found.watching.field_selectors["", "v1", "events"] = WARNINGS
    found.watching.chunk_size = 500
    found.networking.request_timeout = 30
    found.scanning.disabled = True
    found.posting.enabled = False
    return found
