"""The operator's one module that talks to an API server: dicts in, dicts out, over kubernetes.aio's REST client."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
import structlog
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from gemmatune_api import names
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.ports import AlreadyExistsError, ConflictError, Object, RefusedError, UnavailableError

APPLY = "application/apply-patch+yaml"
JSON = "application/json"
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 4
PAGE = 500
COMPONENT = "gemmatune-operator"

_PATHS: Mapping[str, tuple[str, str]] = {
    names.KIND: (f"apis/{names.API_VERSION}", names.PLURAL),
    "Job": ("apis/batch/v1", "jobs"),
    "Pod": ("api/v1", "pods"),
    "Node": ("api/v1", "nodes"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Event": ("api/v1", "events"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
}
_TRANSPORT_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)

log = structlog.get_logger(__name__)
Failpoint = Callable[[str], None]
"""Called before and after every write with the write's name; a test ends the process there."""
MayWrite = Callable[[], bool]
"""Asked before every write is sent, repeated ones too: a leader whose Lease ran out writes nothing more."""
Measure = Callable[[str, str, int, float], None]
"""Called after every request with verb, kind, HTTP code (0: no answer) and seconds."""


class _ApiError(Exception):
    """An answer of 400 or above."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP {code}")
        self.code, self.reason = code, reason


class _BusyError(_ApiError):
    """An answer that asks to come back later, or none at all."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(code, reason, message)
        self.retry_after = retry_after


async def login() -> Configuration:
    """How to reach the API server: KUBECONFIG where it is set, the pod's service account elsewhere.

    Raises:
        kubernetes.aio.config.ConfigException: there is neither.
    """
    configuration = Configuration()
    file = os.environ.get("KUBECONFIG")
    if file or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        await config.load_kube_config(file, client_configuration=configuration, persist_config=False)
    else:
        config.load_incluster_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = 100
    configuration.client_session_kwargs = {"trust_env": False}  # as kopf does: both take the same way
    return configuration


class KubernetesCluster:
    """Implements `ports.Cluster` on a real API server."""

    def __init__(
        self,
        client: ApiClient,
        measure: Measure = lambda verb, kind, code, seconds: None,
        failpoint: Failpoint = lambda point: None,
        may_write: MayWrite = lambda: True,
    ) -> None:
        self._client = client
        self._measure = measure
        self._failpoint = failpoint
        self._may_write = may_write

    # --- ports.Cluster ---

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, read live; None where it does not exist."""
        try:
            return await self._call("get", kind, "GET", _path(kind, namespace, name))
        except _ApiError as error:
            if error.code == 404:
                return None
            _raise(error)

    async def list_objects(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """The objects of a namespace ("" for all) that carry all these labels, read live."""
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        return await self._list(kind, namespace, {"labelSelector": selector} if selector else {})

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """The Events that speak of the object with this UID."""
        return await self._list("Event", namespace, {"fieldSelector": f"involvedObject.uid={uid}"})

    async def create(self, obj: Object) -> Object:
        """Creates an object."""
        kind, meta = obj["kind"], obj["metadata"]
        role = (meta.get("labels") or {}).get(names.LABEL_ROLE, "")
        try:
            return await self._write(
                f"create {kind} {role}".rstrip(), "create", kind, "POST", _path(kind, meta["namespace"]), obj
            )
        except _ApiError as error:
            if error.reason == "AlreadyExists":
                raise AlreadyExistsError(str(error)) from error
            if error.code == 409:  # such as a quota that two creations updated at once
                raise UnavailableError(str(error)) from error
            _raise(error)

    async def delete(self, kind: str, namespace: str, name: str, uid: str, version: str = "") -> None:
        """Deletes the object with exactly this UID (and version, where given), its dependents first.

        An absent one is no error, and neither is one that is not exactly this one: it stays.
        """
        exactly = {"uid": uid, **({"resourceVersion": version} if version else {})}
        options = {"propagationPolicy": "Foreground", "preconditions": exactly}
        try:
            await self._write(f"delete {kind}", "delete", kind, "DELETE", _path(kind, namespace, name), options)
        except _ApiError as error:
            if error.code not in (404, 409):  # 409: another object has the name, or it has changed
                _raise(error)

    async def apply_status(self, obj: Object) -> Object:
        """Server-side apply of `status` as the operator; obj carries the resourceVersion it was planned from."""
        kind, meta = obj["kind"], obj["metadata"]
        path = f"{_path(kind, meta['namespace'], meta['name'])}/status"
        query = {"fieldManager": names.FIELD_MANAGER_OPERATOR, "force": "true"}
        point = f"apply status {obj['status'].get('phase', '')}"
        try:
            return await self._write(point, "apply", kind, "PATCH", path, obj, query, APPLY)
        except _ApiError as error:
            if error.code in (404, 409):
                raise ConflictError(str(error)) from error
            _raise(error)

    async def replace(self, obj: Object) -> Object:
        """Writes an object (a Lease) with the resourceVersion that was read."""
        kind, meta = obj["kind"], obj["metadata"]
        path = _path(kind, meta["namespace"], meta["name"])
        try:
            return await self._write(f"replace {kind}", "replace", kind, "PUT", path, obj)
        except _ApiError as error:
            if error.code in (404, 409):
                raise ConflictError(str(error)) from error
            _raise(error)

    async def emit(self, resource: Object, type_: str, reason: str, message: str) -> None:
        """Records an Event about a resource; never fails the caller."""
        event = _event(resource, type_, reason, message)
        path = _path("Event", event["metadata"]["namespace"])
        try:
            await self._write("create Event", "create", "Event", "POST", path, event)
        except _ApiError as error:
            if error.reason == "AlreadyExists":
                return  # sent twice because the first answer was lost: one object
            log.warning("event not recorded", run=resource["metadata"]["name"], reason=reason, error=str(error))

    # --- REST ---

    async def _list(self, kind: str, namespace: str, query: Mapping[str, str]) -> list[Object]:
        found: list[Object] = []
        query = {**query, "limit": str(PAGE)}
        while True:
            try:
                page = await self._call("list", kind, "GET", _path(kind, namespace), None, query)
            except _ApiError as error:
                _raise(error)
            found += page.get("items") or []
            rest = (page.get("metadata") or {}).get("continue")
            if not rest:
                return found
            query["continue"] = rest

    async def _write(
        self,
        point: str,
        verb: str,
        kind: str,
        method: str,
        path: str,
        body: Object,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> Object:
        self._failpoint(f"before {point}")
        answer = await self._call(verb, kind, method, path, body, query, content_type)
        self._failpoint(f"after {point}")
        return answer

    async def _call(
        self,
        verb: str,
        kind: str,
        method: str,
        path: str,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> Object:
        """One request, repeated a few times while the server is busy."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_BusyError), stop=stop_after_attempt(ATTEMPTS), wait=_pause, reraise=True
        ):
            with attempt:
                if method != "GET" and kind != "Lease" and not self._may_write():
                    raise _BusyError(0, "", f"{verb} {kind}: not sent, since this operator does not lead")
                began, code = time.monotonic(), 0
                try:
                    code, answer = await self._once(method, path, body, query, content_type)
                    return answer
                except _ApiError as error:
                    code = error.code
                    raise
                finally:
                    self._measure(verb, kind, code, time.monotonic() - began)
        raise AssertionError("tenacity ends with an answer or an exception")

    async def _once(
        self, method: str, path: str, body: Object | None, query: Mapping[str, str] | None, content_type: str
    ) -> tuple[int, Object]:
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": JSON, "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await self._client.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            text = await answer.read()
        except _TRANSPORT_ERRORS as error:
            raise _BusyError(0, "", f"{type(error).__name__}: {error}") from error
        document = _document(text)
        if answer.status < 400:
            return answer.status, document
        reason, message = str(document.get("reason") or ""), str(document.get("message") or "")
        if answer.status in (401, 429) or answer.status >= 500:
            raise _BusyError(answer.status, reason, message, _retry_after(answer.headers.get("Retry-After")))
        raise _ApiError(answer.status, reason, message)


_BACKOFF = wait_random_exponential(multiplier=0.2, max=5)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, _BusyError) else None
    return asked if asked is not None else _BACKOFF(state)


def _retry_after(header: str | None) -> float | None:
    return min(float(header), TIMEOUT_SECONDS) if header is not None and header.isdigit() else None


def _raise(error: _ApiError) -> NoReturn:
    """The port's exception for an answer that means the same everywhere."""
    if isinstance(error, _BusyError):
        raise UnavailableError(str(error)) from error
    raise RefusedError(str(error)) from error


def _path(kind: str, namespace: str, name: str = "") -> str:
    prefix, plural = _PATHS[kind]
    parts = [prefix, *(["namespaces", quote(namespace)] if namespace else []), plural, *([quote(name)] if name else [])]
    return "/" + "/".join(parts)


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text or b"{}")
    except ValueError:
        return {"message": text.decode(errors="replace")[:500]}
    return document if isinstance(document, dict) else {}


def _event(resource: Object, type_: str, reason: str, message: str) -> Object:
    meta, now = resource["metadata"], rfc3339(datetime.now(UTC))
    reference = {
        "apiVersion": resource.get("apiVersion", names.API_VERSION),
        "kind": resource.get("kind", names.KIND),
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "resourceVersion": meta.get("resourceVersion", ""),
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{secrets.token_hex(8)}", "namespace": meta["namespace"]},
        "involvedObject": reference,
        "type": type_,
        "reason": reason,
        "message": message,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
