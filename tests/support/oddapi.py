"""An API server as only a bad day shows it: it refuses, or takes a request and says nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.loopback import LoopbackServer

Answer = tuple[int, dict[str, Any] | None] | None
"""Status and body; None in place of the body, or of both: silence until the end of the test."""


class OddApi:
    """Answers each request as `answer` says; a context manager.

    Args:
        answer: from the method and the path, with its query.
    """

    def __init__(self, answer: Callable[[str, str], Answer]) -> None:
        self.asked: list[str] = []
        """Method and path of each request so far."""
        over = self._over = threading.Event()
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked.append(f"{self.command} {self.path}")
                found = answer(self.command, self.path)
                if found is None:
                    self._say_nothing()
                    return
                status, content = found
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if content is None:
                    self._say_nothing()
                else:
                    self.wfile.write(body)

            def _say_nothing(self) -> None:
                self.wfile.flush()
                over.wait()
                self.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = _handle

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = LoopbackServer(Handler)

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig for it, with namespace `team`."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "odd",
            "contexts": [{"name": "odd", "context": {"cluster": "odd", "user": "odd", "namespace": "team"}}],
            "clusters": [{"name": "odd", "cluster": {"server": self._server.endpoint}}],
            "users": [{"name": "odd", "user": {"token": "expired"}}],
        }
        path = folder / "odd.kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.__exit__(kind, error, trace)


def refusal(code: int, reason: str, message: str) -> Answer:
    """An answer as API servers refuse: a Status."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return code, {**status, "message": message, "reason": reason, "code": code}
