"""A proxy in front of fake-gcs-server that meets chosen requests: refuses, cuts, damages or holds them, or kills.

A fault is reached by the request that it waits for, not by a time: "while the optimizer's file goes up", "between the
manifest and the first deletion".
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, unquote, urlsplit

import requests

from tests.support.loopback import LoopbackServer
from tests.support.servers import LOOPBACK

_HOP = frozenset({"host", "connection", "transfer-encoding", "content-length", "keep-alive", "content-encoding"})
_LONGEST_SILENCE = 300.0
_NAME = re.compile(rb'"name":\s*("(?:[^"\\]|\\.)*")')


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and object's name match."""

    method: str
    name: str
    """A regular expression, searched in the object's name (of a listing: in its prefix)."""
    times: int = 1
    code: int = 0
    """Answer with this HTTP code, and do not ask the server."""
    cut: bool = False
    """Hand over half of the request, then break both connections."""
    damage: bool = False
    """Change one byte near the end of what goes up."""
    lose: bool = False
    """Ask the server, then break the connection instead of answering."""
    silent: bool = False
    """Do not answer, and (without `lose`) do not ask the server: whoever asked gives up by himself."""
    before: Callable[[], None] = lambda: None
    """Called before the server is asked; may block."""
    after: Callable[[], None] = lambda: None
    """Called once the server has answered, before the answer is passed on."""
    met: list[str] = field(default_factory=list)
    """Names of the objects whose requests it has met."""
    given_up: int = 0
    """How many of those that got no answer the client has given up."""


class FaultyGcs(LoopbackServer):
    """The proxy."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._lock = threading.Lock()
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        """Method and object's name of everything that was asked."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

            def log_message(self, *_: object) -> None:
                """Nothing."""

        super().__init__(Handler)

    def fault(self, method: str, name: str, times: int = 1, **how: object) -> Fault:
        """Disturbs the next `times` requests that match."""
        fault = Fault(method, name, times, **how)  # type: ignore[arg-type]
        with self._lock:
            self.faults.append(fault)
        return fault

    def mend(self) -> None:
        """Forgets all faults."""
        with self._lock:
            self.faults.clear()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """One request, in a thread of its own."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        name = object_name(request.path, body)
        with self._lock:
            self.requests.append((request.command, name))
            fault = next((one for one in self.faults if self._matches(one, request.command, name)), Fault("", ""))
            fault.times -= 1
            fault.met.append(name)
        fault.before()
        try:
            if fault.code:
                _answer(request, fault.code, b"{}")
            elif fault.cut:
                self._cut(request, body)
            elif fault.silent and not fault.lose:
                self._stay_silent(request, fault)
            elif self._is_another(request.command, request.path, name):
                _answer(request, 412, b"{}")
            else:
                self._forward(request, _damaged(body) if fault.damage else body, fault)
        except (OSError, requests.RequestException):
            request.close_connection = True  # whoever asked is gone, or the server is

    @staticmethod
    def _matches(fault: Fault, method: str, name: str) -> bool:
        return fault.times > 0 and fault.method == method and re.search(fault.name, name) is not None

    def _is_another(self, method: str, path: str, name: str) -> bool:
        """Whether a deletion or a resumable upload names a generation that is not there: fake-gcs-server lets it."""
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if "ifGenerationMatch" not in query or not (method == "DELETE" or query.get("uploadType") == ["resumable"]):
            return False
        bucket = re.search(r"/b/([^/]+)/o", parts.path)
        assert bucket is not None
        found = requests.get(f"{self._target}/storage/v1/b/{bucket.group(1)}/o/{quote(name, safe='')}", timeout=60)
        there = str(found.json()["generation"]) if found.ok else "0"
        return there != query["ifGenerationMatch"][0] and (found.ok or method != "DELETE")

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes, fault: Fault) -> None:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP}
        found = requests.request(request.command, self._target + request.path, data=body, headers=headers, timeout=60)
        fault.after()
        if fault.lose and fault.silent:
            self._stay_silent(request, fault)
            return
        if fault.lose:
            _break(request)
            return
        kept = {key: value for key, value in found.headers.items() if key.lower() not in _HOP}
        kept = {key: value.replace(self._target, self.endpoint) for key, value in kept.items()}
        _answer(request, found.status_code, found.content, kept)

    @staticmethod
    def _stay_silent(request: BaseHTTPRequestHandler, fault: Fault) -> None:
        """Until the client closes the connection, which is when it can be read from."""
        request.connection.settimeout(_LONGEST_SILENCE)
        try:
            fault.given_up += not request.connection.recv(1)
        finally:
            request.close_connection = True

    def _cut(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        target = urlsplit(self._target)
        with socket.create_connection((target.hostname or LOOPBACK, target.port or 80), 10) as connection:
            lines = [
                f"{request.command} {request.path} HTTP/1.1",
                f"Host: {target.netloc}",
                f"Content-Length: {len(body)}",
            ]
            lines += [f"{key}: {value}" for key, value in request.headers.items() if key.lower() not in _HOP]
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])
        _break(request)


def object_name(path: str, body: bytes) -> str:
    """The object that a request is about; the prefix for a listing."""
    parts = urlsplit(path)
    if match := re.search(r"/o/(.+)$", parts.path):
        return unquote(match.group(1))
    query = parse_qs(parts.query)
    for key in ("name", "prefix"):
        if key in query:
            return query[key][0]
    found = _NAME.search(body[:4096])
    return str(json.loads(found.group(1))) if found else ""


def _damaged(body: bytes) -> bytes:
    """One byte changed, in the content: the end of a multipart body is its boundary."""
    place = max(0, len(body) - 200)
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def _answer(request: BaseHTTPRequestHandler, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(code)
    for key, value in (headers or {"Content-Type": "application/json"}).items():
        request.send_header(key, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def _break(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)
