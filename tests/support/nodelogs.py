"""The kubelet's endpoint for logs, as much of it as the API server asks for: `kubectl logs` and `gft logs` work."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.servers import LOOPBACK

PAUSE_SECONDS = 0.05

Finder = Callable[[str, str], tuple[Path, Callable[[], bool]]]
"""Log and whether the pod still runs, by namespace and name. Errors: KeyError for a pod that is not here."""


class LogServer:
    """Serves `/containerLogs/NAMESPACE/POD/CONTAINER` over TLS until it is stopped."""

    def __init__(self, certificate: tuple[Path, Path], find: Finder) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        stopping = self._stopping = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                found, query = asked.path.split("/"), parse_qs(asked.query)
                try:
                    log, runs = find(found[2], found[3])
                except (KeyError, IndexError):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self._send(log, runs, query)

            def _send(self, log: Path, runs: Callable[[], bool], query: dict[str, list[str]]) -> None:
                follow = query.get("follow") == ["true"]
                content = log.read_bytes() if log.exists() else b""
                sent = len(content)
                if "tailLines" in query:
                    lines = content.splitlines(keepends=True)
                    content = b"".join(lines[len(lines) - int(query["tailLines"][0]) :])
                self._chunk(content)
                while follow and not stopping.is_set():
                    over = not runs()
                    more = log.read_bytes()[sent:] if log.exists() else b""
                    sent += len(more)
                    self._chunk(more)
                    if over:
                        break
                    stopping.wait(PAUSE_SECONDS)
                self.wfile.write(b"0\r\n\r\n")

            def _chunk(self, content: bytes) -> None:
                if content:
                    self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
                    self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the server; open logs end with it."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
