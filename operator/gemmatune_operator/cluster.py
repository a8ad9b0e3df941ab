"""The operator's one module that talks to an API server: dicts in, dicts out, over kubernetes.aio's REST client."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
import structlog
from kubernetes.aio.client import Configuration
from pydantic_core import from_json

from gemmatune_api import names
from gemmatune_api.apply import CONTENT_TYPE, apply_text
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.login import LoginError, Session
from gemmatune_operator.ports import AlreadyExistsError, ConflictError, Object, RefusedError, UnavailableError

JSON = "application/json"
TIMEOUT_SECONDS = 30.0
_TIMEOUT = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
ATTEMPTS = 4
PAGE = 500
SMALL_PAGE = 100
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
    "ConfigMap": ("api/v1", "configmaps"),
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


@dataclass(frozen=True, slots=True)
class _Request:
    verb: str
    kind: str
    method: str
    path: str
    body: Object | None = None
    query: Mapping[str, str] | None = None
    content_type: str = JSON


class KubernetesCluster:
    """Implements `ports.Cluster` on a real API server."""

    def __init__(
        self,
        session: Session,
        measure: Measure = lambda verb, kind, code, seconds: None,
        failpoint: Failpoint = lambda point: None,
        may_write: MayWrite = lambda: True,
    ) -> None:
        self._session = session
        self._measure = measure
        self._failpoint = failpoint
        self._may_write = may_write

    # --- ports.Cluster ---

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, read live; None where it does not exist."""
        try:
            return await self._call(_Request("get", kind, "GET", _path(kind, namespace, name)))
        except _ApiError as error:
            if error.code == 404:
                return None
            _raise(error)

    async def list_objects(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """The objects of a namespace ("" for all) that carry all these labels, read live."""
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        return await self._list(kind, namespace, {"labelSelector": selector} if selector else {})

    def pages(
        self, kind: str, namespace: str, labels: Mapping[str, str], fields: str = ""
    ) -> AsyncIterator[list[Object]]:
        """The same page by page, by a field selector too: of thousands only a few are in memory at a time."""
        selector = ",".join(f"{label}={value}" for label, value in labels.items())
        query = {"labelSelector": selector, "fieldSelector": fields}
        return self._pages(kind, namespace, {name: value for name, value in query.items() if value}, SMALL_PAGE)

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """The Events that speak of the object with this UID."""
        return await self._list("Event", namespace, {"fieldSelector": f"involvedObject.uid={uid}"})

    async def create(self, obj: Object) -> Object:
        """Creates an object."""
        kind, meta = obj["kind"], obj["metadata"]
        role = (meta.get("labels") or {}).get(names.LABEL_ROLE, "")
        try:
            request = _Request("create", kind, "POST", _path(kind, meta["namespace"]), obj)
            return await self._write(f"create {kind} {role}".rstrip(), request)
        except _ApiError as error:
            if error.reason == "AlreadyExists":
                raise AlreadyExistsError(str(error)) from error
            if error.code == 409:  # such as a quota that two creations updated at once
                raise UnavailableError(str(error)) from error
            _raise(error)

    async def delete(self, kind: str, namespace: str, name: str, uid: str, version: str = "") -> None:
        """Deletes the object with exactly this UID (and version, where given), its dependents first.

        An absent one is no error.

        Raises:
            ConflictError: what has the name is not exactly this one any more; it stays.
            RefusedError, UnavailableError.
        """
        exactly = {"uid": uid, **({"resourceVersion": version} if version else {})}
        options = {"propagationPolicy": "Foreground", "preconditions": exactly}
        try:
            request = _Request("delete", kind, "DELETE", _path(kind, namespace, name), options)
            await self._write(f"delete {kind}", request)
        except _ApiError as error:
            if error.code == 409:
                raise ConflictError(str(error)) from error
            if error.code != 404:
                _raise(error)

    async def apply_status(self, obj: Object) -> Object:
        """Server-side apply of `status` as the operator; obj carries the resourceVersion it was planned from."""
        kind, meta = obj["kind"], obj["metadata"]
        path = f"{_path(kind, meta['namespace'], meta['name'])}/status"
        query = {"fieldManager": names.FIELD_MANAGER_OPERATOR, "force": "true"}
        point = f"apply status {obj['status'].get('phase', '')}"
        try:
            return await self._write(point, _Request("apply", kind, "PATCH", path, obj, query, CONTENT_TYPE))
        except _ApiError as error:
            if error.code in (404, 409):
                raise ConflictError(str(error)) from error
            _raise(error)

    async def replace(self, obj: Object) -> Object:
        """Writes an object (a Lease) with the resourceVersion that was read."""
        kind, meta = obj["kind"], obj["metadata"]
        path = _path(kind, meta["namespace"], meta["name"])
        try:
            return await self._write(f"replace {kind}", _Request("replace", kind, "PUT", path, obj))
        except _ApiError as error:
            if error.code in (404, 409):
                raise ConflictError(str(error)) from error
            _raise(error)

    async def emit(self, resource: Object, type_: str, reason: str, message: str) -> None:
        """Records an Event about a resource; never fails the caller."""
        event = _event(resource, type_, reason, message)
        path = _path("Event", event["metadata"]["namespace"])
        try:
            await self._write("create Event", _Request("create", "Event", "POST", path, event))
        except _ApiError as error:
            if error.reason == "AlreadyExists":
                return  # sent twice because the first answer was lost: one object
            log.warning("event not recorded", run=resource["metadata"]["name"], reason=reason, error=str(error))

    # --- REST ---

    async def _list(self, kind: str, namespace: str, query: Mapping[str, str]) -> list[Object]:
        return [item async for page in self._pages(kind, namespace, query, PAGE) for item in page]

    async def _pages(
        self, kind: str, namespace: str, query: Mapping[str, str], size: int
    ) -> AsyncIterator[list[Object]]:
        request = _Request("list", kind, "GET", _path(kind, namespace), query={**query, "limit": str(size)})
        while True:
            try:
                page = await self._call(request)
            except _ApiError as error:
                _raise(error)
            yield page.get("items") or []
            rest = (page.get("metadata") or {}).get("continue")
            if not rest:
                return
            request = replace(request, query={**(request.query or {}), "continue": rest})

    async def _write(self, point: str, request: _Request) -> Object:
        self._failpoint(f"before {point}")
        answer = await self._call(request)
        self._failpoint(f"after {point}")
        return answer

    async def _call(self, request: _Request) -> Object:
        """One request, repeated a few times while the server is busy."""
        for attempt in range(1, ATTEMPTS + 1):
            login = self._session.configuration
            try:
                answer = await self._measured(request)
                self._session.works()
                return answer
            except _BusyError as error:
                if error.code == 401:
                    await self._log_in_again(login, error, last=attempt == ATTEMPTS)
                if attempt == ATTEMPTS:
                    raise
                asked = error.retry_after
            await asyncio.sleep(_backoff(attempt) if asked is None else asked)
        raise AssertionError("the last attempt answers or raises")

    async def _log_in_again(self, login: Configuration, error: _BusyError, *, last: bool) -> None:
        """A login that has run out is replaced; a server that has just started refuses good ones for a moment, too."""
        try:
            renewed = await self._session.renew(login)
        except LoginError as failed:
            raise _BusyError(401, error.reason, f"{error}: {failed}") from failed
        if last and not renewed:
            raise _BusyError(401, error.reason, f"{error}: {self._session.gives_up()}") from error

    async def _measured(self, request: _Request) -> Object:
        verb, kind = request.verb, request.kind
        if request.method != "GET" and kind != "Lease" and not self._may_write():
            raise _BusyError(0, "", f"{verb} {kind}: not sent, since this operator does not lead")
        began, code = time.monotonic(), 0
        try:
            code, answer = await self._once(request)
            return answer
        except _ApiError as error:
            code = error.code
            raise
        finally:
            self._measure(verb, kind, code, time.monotonic() - began)

    async def _once(self, request: _Request) -> tuple[int, Object]:
        """One request over the session's own connections and login, without the client's serialisation of models."""
        configuration, rest = self._session.configuration, self._session.rest
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        headers = {"Accept": JSON, "Content-Type": request.content_type}
        token = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        try:
            async with rest.pool_manager.request(
                request.method,
                configuration.host + request.path,
                params=request.query,
                headers=headers,
                data=None if request.body is None else apply_text(request.body),
                timeout=_TIMEOUT,
                proxy=rest.proxy,
                proxy_headers=rest.proxy_headers,
                server_hostname=configuration.tls_server_name,
            ) as answer:
                text = await answer.read()
        except _TRANSPORT_ERRORS as error:
            raise _BusyError(0, "", f"{type(error).__name__}: {error}") from error
        document = _document(text)
        if answer.status < 400:
            if document is None:  # an empty list would say that everything is gone
                raise _BusyError(0, "", f"an answer that is no JSON object: {text[:200].decode(errors='replace')}")
            return answer.status, document
        document = document or {"message": text.decode(errors="replace")[:500]}
        reason, message = str(document.get("reason") or ""), str(document.get("message") or "")
        if answer.status in (401, 429) or answer.status >= 500 or _lacks_rights(answer.status, message):
            raise _BusyError(answer.status, reason, message, _retry_after(answer.headers.get("Retry-After")))
        raise _ApiError(answer.status, reason, message)


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: doubling, capped, and anything below that."""
    return random.uniform(0, min(5.0, 0.2 * 2**attempt))


def _retry_after(header: str | None) -> float | None:
    return min(float(header), TIMEOUT_SECONDS) if header is not None and header.isdigit() else None


def _lacks_rights(code: int, message: str) -> bool:
    """RBAC's refusal, not a quota's or a policy's: a server that has just started knows nobody's rights (measured)."""
    return code == 403 and " cannot " in message


def _raise(error: _ApiError) -> NoReturn:
    """The port's exception for an answer that means the same everywhere."""
    if isinstance(error, _BusyError) and error.code != 403:
        raise UnavailableError(str(error)) from error
    raise RefusedError(str(error)) from error


def _path(kind: str, namespace: str, name: str = "") -> str:
    prefix, plural = _PATHS[kind]
    parts = [prefix, *(["namespaces", quote(namespace)] if namespace else []), plural, *([quote(name)] if name else [])]
    return "/" + "/".join(parts)


def _document(text: bytes) -> dict[str, Any] | None:
    try:
        document = from_json(text or b"{}")
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


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
