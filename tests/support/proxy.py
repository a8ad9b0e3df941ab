"""A proxy between the operator and the API server that disturbs chosen requests: refuses, delays, loses, cuts."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.controlplane import ControlPlane
from tests.support.servers import LOOPBACK

WRITES = ("POST", "PUT", "PATCH", "DELETE")
_HOP = frozenset({"host", "connection", "transfer-encoding", "content-length", "keep-alive", "content-encoding"})


@dataclass
class Fault:
    """What happens to requests that match; each fault has a number of times, counted down."""

    method: str
    path: str
    """A regular expression, searched in the path."""
    times: int
    code: int = 0
    """Answer with this HTTP code instead of asking the API server."""
    retry_after: int | None = None
    lose_answer: bool = False
    """Ask the API server, then break the connection."""
    delay: float = 0.0
    """Seconds before the API server is asked."""
    met: int = 0
    """Requests that it has hit."""


@dataclass
class ApiProxy:
    """Speaks plain HTTP to the operator and TLS, as its ServiceAccount, to the API server. A context manager."""

    control: ControlPlane
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of everything that was asked."""
    gone: int = 0
    """Watches that the API server ended with 410."""
    deaf: str = ""
    """Watch events of paths that match are swallowed; empty: none."""
    silent: bool = False
    """Requests are taken and never answered."""
    refusing: bool = False
    """Connections break at once."""

    def __enter__(self) -> ApiProxy:
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Transport] = set()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._thread.start()
        assert self._up.wait(30), "the proxy did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig that goes through this proxy."""
        path = self.control.folder / f"proxy-{self.port}.kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": f"http://{LOOPBACK}:{self.port}"}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "nobody"}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(document))
        return path

    # --- what tests do ---

    def fault(self, method: str, path: str, times: int = 1, **how: object) -> Fault:
        """Disturbs the next `times` requests that match."""
        fault = Fault(method, path, times, **how)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def cut(self) -> None:
        """Breaks every connection, and every new one until `mend`."""
        self.refusing = True

        def abort() -> None:
            for transport in list(self._open):
                transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def mend(self) -> None:
        """Everything works again."""
        self.refusing = self.silent = False
        self.deaf = ""
        self.faults.clear()

    def count(self, method: str, path: str) -> int:
        """How many requests of this kind there were."""
        return sum(1 for verb, where in list(self.requests) if verb == method and re.search(path, where))

    # --- the server ---

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        context = ssl.create_default_context(cafile=str(self.control.ca_path))
        self._identity = {"Authorization": f"Bearer {self.control.operator_token}"}
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            self._session = session
            app = web.Application(client_max_size=2**26)
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, 0).start()
            self.port = int(runner.addresses[0][1])
            self._up.set()
            await self._stop.wait()
            for transport in list(self._open):
                transport.abort()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None or self.refusing:
            return self._break(request)
        self._open.add(transport)
        self.requests.append((request.method, request.path))
        try:
            if self.silent:
                await asyncio.Event().wait()
            fault = self._fault(request)
            if fault is not None and fault.delay:
                await asyncio.sleep(fault.delay)
            if fault is not None and fault.code:
                return _refusal(fault)
            return await self._forward(request, lose=fault is not None and fault.lose_answer)
        except (aiohttp.ClientError, ConnectionError):
            return self._break(request)
        finally:
            self._open.discard(transport)

    def _fault(self, request: web.Request) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == request.method and re.search(fault.path, request.path):
                fault.times -= 1
                fault.met += 1
                return fault
        return None

    async def _forward(self, request: web.Request, *, lose: bool) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        headers |= self._identity
        url = f"{self.control.server_url}{request.raw_path}"
        async with self._session.request(
            request.method,
            URL(url, encoded=True),
            headers=headers,
            data=await request.read() or None,
            skip_auto_headers=("Content-Type", "Accept-Encoding"),
        ) as answer:
            watching = request.query.get("watch") in ("true", "1")
            body = b"" if watching else await answer.read()
            if lose:
                return self._break(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if "Content-Encoding" in answer.headers:
                kept["Content-Encoding"] = answer.headers["Content-Encoding"]
            if not watching:
                return web.Response(status=answer.status, headers=kept, body=body)
            stream = web.StreamResponse(status=answer.status, headers=kept)
            await stream.prepare(request)
            async for line in answer.content:
                self.gone += b'"type":"ERROR"' in line and b'"code":410' in line
                if not (self.deaf and re.search(self.deaf, request.path)):
                    await stream.write(line)
            return stream

    def _break(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)


def _refusal(fault: Fault) -> web.Response:
    reasons = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reasons.get(fault.code, ""),
        "message": f"disturbed: {fault.code}",
        "code": fault.code,
    }
    headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
    return web.json_response(status, status=fault.code, headers=headers)
