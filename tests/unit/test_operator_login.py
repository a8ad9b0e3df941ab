"""The operator's login: a plugin's token that runs out, certificates that are replaced, and a plugin that fails."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import kopf
import psutil
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.config import incluster_config

from gemmatune_operator import cluster, handlers
from gemmatune_operator import login as module
from gemmatune_operator.cluster import KubernetesCluster
from gemmatune_operator.login import PAUSE_SECONDS, LoginError, Session, login
from gemmatune_operator.ports import UnavailableError
from tests.support.certificates import Authority
from tests.support.servers import LOOPBACK

EXEC = "client.authentication.k8s.io/v1beta1"
REFUSED = {"kind": "Status", "reason": "Unauthorized", "message": "Unauthorized"}
WORDS = "ERROR: (gcloud.config) There was a problem refreshing your auth tokens:\nReauthentication failed."


class Api:
    """Answers those that `knows` knows, and refuses the others."""

    def __init__(self, knows: Callable[[web.Request], bool]) -> None:
        self.knows = knows
        self.refused = 0

    async def answer(self, request: web.Request) -> web.Response:
        if self.knows(request):
            return web.json_response({"kind": "Job", "metadata": {"name": "x"}})
        self.refused += 1
        return web.json_response(REFUSED, status=401)

    async def serve(self, context: ssl.SSLContext | None = None) -> TestServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        server = TestServer(app, host=LOOPBACK, scheme="https" if context else "http")
        await server.start_server(ssl=context, shutdown_timeout=0.1)
        return server


class Plugin:
    """A login plugin: its first token is token-1, its second token-2; it says `words` and fails where they are set."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.command = folder, folder / "plugin"
        status = {"token": "token-%s", "expirationTimestamp": "2026-03-01T12:00:00Z"}
        self.gives(status)

    def gives(self, status: dict[str, str]) -> None:
        """What it answers from now on; %s is the number of the call."""
        answer = json.dumps({"apiVersion": EXEC, "kind": "ExecCredential", "status": status})
        (self.folder / "answer").write_text(answer)
        self.command.write_text(
            f"#!/bin/sh\ncd '{self.folder}'\n"
            "echo call >> calls\n"
            "if [ -e words ]; then cat words >&2; exit 3; fi\n"
            'sed "s/%s/$(wc -l < calls | tr -d " ")/" answer\n'
        )
        self.command.chmod(0o755)

    def fails(self, words: str) -> None:
        (self.folder / "words").write_text(words)

    def works(self) -> None:
        (self.folder / "words").unlink()

    @property
    def calls(self) -> int:
        return len((self.folder / "calls").read_text().splitlines())

    def kubeconfig(self, server: str, authority: Path | None = None, **more: str) -> Path:
        """A kubeconfig that logs in by it."""
        plugin = {"apiVersion": EXEC, "command": str(self.command), **more}
        trust = {"certificate-authority": str(authority)} if authority else {}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "gke",
            "contexts": [{"name": "gke", "context": {"cluster": "gke", "user": "gke"}}],
            "clusters": [{"name": "gke", "cluster": {"server": server.rstrip("/"), **trust}}],
            "users": [{"name": "gke", "user": {"exec": plugin}}],
        }
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


@pytest.fixture
async def api(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """An API that takes the plugin's first token, with KUBECONFIG for it."""
    monkeypatch.setattr(cluster, "_backoff", lambda attempt: 0.001)
    api = Api(bearer("token-1"))
    server = await api.serve()
    monkeypatch.setenv("KUBECONFIG", str(plugin.kubeconfig(str(server.make_url("")))))
    yield api
    await server.close()


def bearer(token: str) -> Callable[[web.Request], bool]:
    return lambda request: request.headers.get("Authorization", "").lower() == f"bearer {token}"


async def test_a_token_that_has_run_out_is_replaced_once(api: Api, plugin: Plugin) -> None:
    async with Session() as session:
        port = KubernetesCluster(session)
        assert await port.get("Job", "ns", "x") is not None
        assert (plugin.calls, api.refused) == (1, 0)
        api.knows = bearer("token-2")
        found = await asyncio.gather(*(port.get("Job", "ns", "x") for _ in range(20)))
        assert all(found)
        assert plugin.calls == 2, "however many requests were refused"
        assert 1 <= api.refused <= 20
        before = api.refused
        assert await port.get("Job", "ns", "x") is not None
        assert (plugin.calls, api.refused) == (2, before)


async def test_a_server_that_refuses_every_login_gets_few(api: Api, plugin: Plugin) -> None:
    now = 100.0
    async with Session(clock=lambda: now) as session:
        port = KubernetesCluster(session)
        api.knows = lambda request: False
        for _ in range(3):
            with pytest.raises(UnavailableError, match="Unauthorized: the API server refuses the login, also after"):
                await port.get("Job", "ns", "x")
        assert plugin.calls == 2, "one new login"
        assert api.refused == 3 * cluster.ATTEMPTS
        assert session.failure, "which the readiness probe tells"
        now += PAUSE_SECONDS
        api.knows = bearer("token-3")
        assert await port.get("Job", "ns", "x") is not None
        assert session.failure == ""


async def test_a_server_that_refuses_good_logins_for_a_moment(api: Api, plugin: Plugin) -> None:
    """As one that has just started does: the new login is asked with again, and nothing is wrong in the end."""
    async with Session() as session:
        port = KubernetesCluster(session)
        api.knows = lambda request: api.refused >= cluster.ATTEMPTS - 1
        assert await port.get("Job", "ns", "x") is not None
        assert (plugin.calls, api.refused, session.failure) == (2, cluster.ATTEMPTS - 1, "")


async def test_certificates_that_are_no_pair_end_no_connection(api: Api) -> None:
    """As while they are being replaced: the connections in use stay, however often it happens."""
    now = 100.0
    async with Session(clock=lambda: now) as session:
        port, given = KubernetesCluster(session), await login()
        broken = await login()
        broken.cert_file = broken.key_file = str(Path(os.environ["KUBECONFIG"]))
        api.knows = lambda request: False

        async def halfway() -> object:
            return broken

        session._log_in = halfway
        for _ in range(3):
            with pytest.raises(UnavailableError, match="Unauthorized"):
                await port.get("Job", "ns", "x")
            now += PAUSE_SECONDS

        async def whole() -> object:
            return given

        session._log_in = whole
        api.knows = lambda request: True
        assert await port.get("Job", "ns", "x") is not None


async def test_a_plugin_that_fails_later_is_told_in_its_words(api: Api, plugin: Plugin) -> None:
    now = 100.0
    async with Session(clock=lambda: now) as session:
        port = KubernetesCluster(session)
        api.knows = bearer("token-3")
        plugin.fails(WORDS)
        for _ in range(2):
            with pytest.raises(UnavailableError) as told:
                await port.get("Job", "ns", "x")
            assert str(told.value) == (
                f"Unauthorized: the login plugin {plugin.command} of the kubeconfig failed: exit code 3: "
                "ERROR: (gcloud.config) There was a problem refreshing your auth tokens: Reauthentication failed."
            )
        assert (plugin.calls, api.refused) == (2, 2), "the second request finds the pause"
        assert WORDS.splitlines()[-1] in session.failure, "which the readiness probe tells"
        plugin.works()
        now += PAUSE_SECONDS
        assert await port.get("Job", "ns", "x") is not None
        assert (plugin.calls, session.failure) == (3, "")


async def test_a_refusal_that_was_no_fault_of_the_login(api: Api, plugin: Plugin) -> None:
    """The old login works again, as with a server that has just started: nothing is wrong any more."""
    async with Session() as session:
        port = KubernetesCluster(session)
        api.knows = lambda request: False
        plugin.fails(WORDS)
        with pytest.raises(UnavailableError):
            await port.get("Job", "ns", "x")
        assert session.failure
        api.knows = bearer("token-1")
        assert await port.get("Job", "ns", "x") is not None
        assert session.failure == ""


async def test_a_request_that_is_given_up_ends_no_login(api: Api, plugin: Plugin) -> None:
    async with Session() as session:
        under_way, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> object:
            under_way.set()
            await go_on.wait()
            return await login()

        session._log_in = slow
        refused = session.configuration
        first = asyncio.create_task(session.renew(refused))
        await under_way.wait()
        second = asyncio.create_task(session.renew(refused))
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        go_on.set()
        await second
        assert session.configuration is not refused
        assert plugin.calls == 2


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        ({"token": "t"}, "no account", "exit code 3: no account (Install it.)"),
        ({"token": ""}, None, "it gives neither a token nor a client certificate with its key (Install it.)"),
        ({"clientCertificateData": "c"}, None, "it gives neither a token nor a client certificate with its key"),
        ({}, "", "exit code 3: it says nothing"),
        (None, None, "No such file or directory"),
    ],
)
async def test_no_login_without_credentials(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, status: dict[str, str] | None, words: str | None, expected: str
) -> None:
    """Also kopf waits for a login then, instead of asking as nobody."""
    if status is None:
        plugin.command.unlink()
    else:
        plugin.gives(status)
    if words is not None:
        plugin.fails(words)
    monkeypatch.setenv("KUBECONFIG", str(plugin.kubeconfig("http://127.0.0.1:9", installHint="Install\nit.")))
    with pytest.raises(LoginError) as told:
        await login()
    assert f"the login plugin {plugin.command} of the kubeconfig failed: " in str(told.value)
    assert expected in str(told.value)
    with pytest.raises(kopf.TemporaryError, match="login plugin"):
        await handlers._login()


@pytest.mark.parametrize("answer", ["", "no JSON", "[]", "{}", '{"status": null}'])
async def test_a_plugin_that_answers_something_else(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    (plugin.folder / "answer").write_text(answer)
    monkeypatch.setenv("KUBECONFIG", str(plugin.kubeconfig("http://127.0.0.1:9")))
    with pytest.raises(LoginError, match="its answer is no ExecCredential with a status"):
        await login()


async def test_a_plugin_that_hangs(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = plugin.folder / "pid"
    plugin.command.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 60\n")
    monkeypatch.setenv("KUBECONFIG", str(plugin.kubeconfig("http://127.0.0.1:9")))
    monkeypatch.setattr(module, "PLUGIN_SECONDS", 0.2)
    with pytest.raises(LoginError, match=r"has not ended within 0\.2 s"):
        await login()
    assert not psutil.pid_exists(int(pid.read_text())), "nothing is left of it"


def test_the_process_tells_why_it_cannot_log_in(plugin: Plugin, tmp_path: Path) -> None:
    plugin.fails(WORDS)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "KUBECONFIG": str(plugin.kubeconfig("http://127.0.0.1:9")),
    }
    command = [sys.executable, "-m", "gemmatune_operator", "--bind=127.0.0.1", "--port=0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"cannot log in to the cluster: the login plugin {plugin.command} of the kubeconfig failed")
    assert "Reauthentication failed." in last
    assert "Traceback" not in done.stderr


# --- over TLS ---


def serving(authority: Authority) -> ssl.SSLContext:
    """A server's context; it asks for client certificates, as API servers do."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.path))
    context.load_cert_chain(*authority.server("api", [LOOPBACK]))
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def user(name: str) -> Callable[[web.Request], bool]:
    def knows(request: web.Request) -> bool:
        assert request.transport is not None
        certificate = request.transport.get_extra_info("ssl_object").getpeercert() or {}
        return ((("commonName", name),),) == certificate.get("subject")

    return knows


async def test_a_certificate_of_a_plugin_is_replaced(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is part of the connections, which are made anew."""
    authority = Authority(tmp_path)

    def gives(name: str) -> None:
        certificate, key = authority.client(name, name, [])
        plugin.gives({"clientCertificateData": certificate.read_text(), "clientKeyData": key.read_text()})

    gives("first")
    api = Api(user("first"))
    server = await api.serve(serving(authority))
    monkeypatch.setattr(cluster, "_backoff", lambda attempt: 0.001)
    monkeypatch.setenv("KUBECONFIG", str(plugin.kubeconfig(str(server.make_url("")), authority.path)))
    now = 0.0
    async with Session(clock=lambda: now) as session:
        port = KubernetesCluster(session)
        assert await port.get("Job", "ns", "x") is not None
        for name in ("second", "third"):
            now += PAUSE_SECONDS
            gives(name)
            api.knows = user(name)
            assert await port.get("Job", "ns", "x") is not None
        assert (plugin.calls, api.refused) == (3, 2)
    await server.close()


async def test_the_token_of_a_pod_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads its file once a minute; a token that was revoked before is read anew at once."""
    authority, token = Authority(tmp_path), tmp_path / "token"
    token.write_text("old")
    api = Api(bearer("old"))
    server = await api.serve(serving(authority))
    monkeypatch.setattr(cluster, "_backoff", lambda attempt: 0.001)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", LOOPBACK)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority.path))
    async with Session() as session:
        port = KubernetesCluster(session)
        assert await port.get("Job", "ns", "x") is not None
        token.write_text("new")
        api.knows = bearer("new")
        for _ in range(3):
            assert await port.get("Job", "ns", "x") is not None
        assert api.refused == 1
    await server.close()
