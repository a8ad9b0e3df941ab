"""Probes and metrics over HTTP, in a thread of their own: they answer also while the event loop stands still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

Complaint = Callable[[], str | None]
"""What is wrong, in a sentence; None where all is well."""

log = structlog.get_logger(__name__)


@contextlib.contextmanager
def serving(bind: str, port: int, *, alive: Complaint, ready: Complaint, scrape: Callable[[], bytes]) -> Iterator[int]:
    """Serves /healthz, /readyz and /metrics until the end of the block; gives the port.

    A complaint is answered with 503 and its text.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, scrape(), CONTENT_TYPE_LATEST)
            elif path in ("/healthz", "/readyz"):
                complaint = alive() if path == "/healthz" else ready()
                self._answer(503 if complaint else 200, f"{complaint or 'ok'}\n".encode())
            else:
                self._answer(404, b"/healthz, /readyz or /metrics\n")

        def _answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds: they leave no line."""

    server = ThreadingHTTPServer((bind, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    log.info("serving probes and metrics", address=bind, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
