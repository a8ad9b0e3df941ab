"""cluster.py against the real API server: what each answer becomes; and against a scripted one: what is repeated."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from gemmatune_api import names
from gemmatune_operator import cluster
from gemmatune_operator.cluster import KubernetesCluster
from gemmatune_operator.login import Session
from gemmatune_operator.ports import (
    AlreadyExistsError,
    ConflictError,
    Object,
    RefusedError,
    UnavailableError,
)
from tests.support.controlplane import ControlPlane
from tests.support.stage import Stage
from tests.support.wait import wait_for


@pytest.fixture
async def port(crd: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubernetesCluster]:
    """The operator's client, logged in by KUBECONFIG as the administrator."""
    monkeypatch.setenv("KUBECONFIG", str(crd.kubeconfig))
    async with Session() as session:
        yield KubernetesCluster(session)


def account(namespace: str, name: str, **labels: str) -> Object:
    """A small object of a kind that the operator creates."""
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}


@pytest.mark.cluster
async def test_create_get_list_delete(
    port: KubernetesCluster, crd: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await port.get("ServiceAccount", namespace, "one") is None
    made = await port.create(account(namespace, "one", team="a"))
    with pytest.raises(AlreadyExistsError):
        await port.create(account(namespace, "one"))
    for name in ("two", "three", "four"):
        await port.create(account(namespace, name, team="a", size="s"))
    monkeypatch.setattr(cluster, "PAGE", 2)
    found = await port.list_objects("ServiceAccount", namespace, {"team": "a"})
    assert sorted(item["metadata"]["name"] for item in found) == ["four", "one", "three", "two"], "over several pages"
    assert len(await port.list_objects("ServiceAccount", namespace, {"team": "a", "size": "s"})) == 3
    with pytest.raises(ConflictError):
        await port.delete("ServiceAccount", namespace, "one", "another-uid")
    assert await port.get("ServiceAccount", namespace, "one") is not None, "another UID is another object"
    await port.delete("ServiceAccount", namespace, "one", made["metadata"]["uid"])
    await port.delete("ServiceAccount", namespace, "one", made["metadata"]["uid"])
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/one"
    await asyncio.to_thread(wait_for, lambda: crd.api.find(path) is None, "the deletion, dependents first")


@pytest.mark.cluster
async def test_status(port: KubernetesCluster, crd: ControlPlane, namespace: str) -> None:
    """The operator's fields are replaced as a whole, the trainer's stay, and a stale version is refused."""
    stage = Stage(crd.api, namespace)
    stage.create()
    stage.trainer(progress={"step": 3})

    def document(status: Object, version: str | None = None) -> Object:
        found = stage.resource
        meta = {
            "name": "quotes",
            "namespace": namespace,
            "resourceVersion": version or found["metadata"]["resourceVersion"],
        }
        return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "status": status}

    stale = stage.resource["metadata"]["resourceVersion"]
    await port.apply_status(document({"phase": "Pending", "job": "quotes-t1"}))
    assert stage.status == {"phase": "Pending", "job": "quotes-t1", "progress": {"step": 3}}
    await port.apply_status(document({"phase": "Training"}))
    assert stage.status == {"phase": "Training", "progress": {"step": 3}}
    managers = {item["manager"] for item in stage.resource["metadata"]["managedFields"]}
    assert names.FIELD_MANAGER_OPERATOR in managers
    odd = "".join(map(chr, [0, 9, 10, 13, 27, 34, 92, 127, 0x85, 0xE9, 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0x1F600]))
    await port.apply_status(document({"phase": "Training", "message": f"found {odd} here"}))
    assert stage.status["message"] == f"found {odd} here", "an apply is read as YAML, which knows fewer characters"
    with pytest.raises(ConflictError):
        await port.apply_status(document({"phase": "Failed"}, stale))
    with pytest.raises(RefusedError):
        await port.apply_status(document({"attempts": [{"number": n, "job": "x"} for n in range(21)]}))
    await port.emit(stage.resource, "Warning", "Crashed", "it crashed")
    (event,) = await port.events(namespace, stage.resource["metadata"]["uid"])
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Crashed", "it crashed")
    gone = document({"phase": "Failed"})
    stage.api.delete(f"{stage.runs}/quotes")
    with pytest.raises(ConflictError):
        await port.apply_status(gone)
    assert await port.get(names.KIND, namespace, "quotes") is None, "an apply never makes the resource"


@pytest.mark.cluster
async def test_without_rights(crd: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(crd.kubeconfig_for("nobody-special")))
    async with Session() as session:
        port = KubernetesCluster(session)
        with pytest.raises(RefusedError, match="nobody-special"):
            await port.create(account(namespace, "x"))
        with pytest.raises(RefusedError):
            await port.get(names.KIND, namespace, "x")
        resource = {"metadata": {"name": "x", "namespace": namespace, "uid": "u"}}
        await port.emit(resource, "Normal", "Valid", "never fails the caller")


# --- a scripted server ---


class Script:
    """Answers in turn; the last one for ever."""

    def __init__(self, *answers: tuple[int, dict[str, str]], message: str = "m", body: bytes = b"") -> None:
        self.answers = list(answers)
        self.message = message
        self.body = body
        self.requests = 0

    async def answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        code, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status = {"kind": "Status", "reason": "Scripted", "message": self.message}
        if self.body:
            return web.Response(body=self.body, status=code, headers=headers)
        return web.json_response(status, status=code, headers=headers)


def at(host: str) -> Session:
    """A session with a server that asks for no login."""

    async def nobody() -> Configuration:
        return Configuration(host=host)

    return Session(nobody)


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Serves a script; the client's pauses are as long as the server says, else very short."""
    monkeypatch.setattr(cluster, "_backoff", lambda attempt: 0.001)
    servers: list[TestServer] = []
    sessions: list[Session] = []

    async def start(script: Script, **hooks: Any) -> KubernetesCluster:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", script.answer)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        session = await at(str(server.make_url("")).rstrip("/")).__aenter__()
        sessions.append(session)
        return KubernetesCluster(session, **hooks)

    yield start
    for session in sessions:
        await session.__aexit__(None, None, None)
    for server in servers:
        await server.close()


@pytest.mark.parametrize("code", [401, 429, 500, 503])
async def test_a_busy_server_is_asked_again(serve: Any, code: int) -> None:
    script = Script((code, {"Retry-After": "0"}), (code, {}), (200, {}))
    seen: list[tuple[str, str, int]] = []
    port = await serve(script, measure=lambda verb, kind, code, seconds: seen.append((verb, kind, code)))
    assert await port.get("Job", "ns", "x") is not None
    assert script.requests == 3
    assert seen == [("get", "Job", code), ("get", "Job", code), ("get", "Job", 200)]


async def test_a_server_that_does_not_know_our_rights_yet(serve: Any) -> None:
    """One that has just started answers 403 for a moment; a quota or a policy means it."""
    message = 'jobs.batch "x" is forbidden: User "u" cannot create resource "jobs"'
    script = Script((403, {}), (403, {}), (200, {}), message=message)
    port = await serve(script)
    assert await port.get("Job", "ns", "x") is not None
    script = Script((403, {}), message=message)
    port = await serve(script)
    with pytest.raises(RefusedError, match="cannot create"):
        await port.create(account("ns", "x"))
    assert script.requests == cluster.ATTEMPTS
    script = Script((403, {}), message='pods "x" is forbidden: exceeded quota: none')
    port = await serve(script)
    with pytest.raises(RefusedError, match="exceeded quota"):
        await port.create(account("ns", "x"))
    assert script.requests == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"items": [{', b'{"items":' + b"[" * 300 + b"]" * 300 + b"}"])
async def test_an_answer_that_cannot_be_read_is_no_empty_list(serve: Any, body: bytes) -> None:
    """A proxy's page, or what is nested too deep: not one run is gone."""
    port = await serve(Script((200, {}), body=body))
    with pytest.raises(UnavailableError, match="no JSON object"):
        await port.list_objects(names.KIND, "", {})
    refusing = await serve(Script((422, {}), body=body))
    with pytest.raises(RefusedError):
        await refusing.get("Job", "ns", "x")


async def test_a_server_that_stays_busy(serve: Any) -> None:
    script = Script((503, {}))
    port = await serve(script)
    for call in (
        port.get("Job", "ns", "x"),
        port.list_objects("Job", "ns", {}),
        port.events("ns", "u"),
        port.create(account("ns", "x")),
        port.delete("Job", "ns", "x", "u"),
        port.apply_status({"kind": "Job", "metadata": {"name": "x", "namespace": "ns"}, "status": {}}),
    ):
        with pytest.raises(UnavailableError):
            await call
    assert script.requests == 6 * cluster.ATTEMPTS


async def test_no_answer_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_backoff", lambda attempt: 0.001)
    async with at("http://127.0.0.1:9") as session:
        with pytest.raises(UnavailableError):
            await KubernetesCluster(session).get("Job", "ns", "x")


async def test_a_quota_that_two_creations_updated(serve: Any) -> None:
    """409 without AlreadyExists is no taken name."""
    port = await serve(Script((409, {})))
    with pytest.raises(UnavailableError):
        await port.create(account("ns", "x"))


async def test_every_write_passes_failpoints(serve: Any) -> None:
    points: list[str] = []
    port = await serve(Script((200, {})), failpoint=points.append)
    await port.create(
        {"kind": "Job", "metadata": {"name": "x", "namespace": "ns", "labels": {names.LABEL_ROLE: "train"}}}
    )
    await port.delete("Job", "ns", "x", "u")
    await port.apply_status(
        {"kind": names.KIND, "metadata": {"name": "x", "namespace": "ns"}, "status": {"phase": "Training"}}
    )
    await port.get("Job", "ns", "x")
    whats = ["create Job train", "delete Job", "apply status Training"]
    assert points == [f"{when} {what}" for what in whats for when in ("before", "after")]


def test_login_needs_something(tmp_path: Path) -> None:
    """Neither KUBECONFIG nor a pod: one sentence, no traceback."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "gemmatune_operator", "--bind=127.0.0.1", "--port=0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Set KUBECONFIG" in done.stderr
    assert "Traceback" not in done.stderr
