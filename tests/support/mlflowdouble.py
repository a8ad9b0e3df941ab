"""An MLflow tracking server on loopback, as far as a run speaks to one: it lets in whoever has its token."""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.loopback import LoopbackServer

_RUN = {"info": {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": "RUNNING"}, "data": {}}
_ANSWERS: dict[str, Any] = {
    "experiments/create": {"experiment_id": "1"},
    "runs/search": {"runs": []},
    "runs/create": {"run": _RUN},
    "runs/update": {"run_info": _RUN["info"]},
}
_ABSENT = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}


class MlflowServer(LoopbackServer):
    """The server; `endpoint` is what tracking.mlflow.uri names."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.requests: list[tuple[str, str]] = []
        """What each request asked for, and the token that it carried."""
        self.metrics: list[dict[str, Any]] = []
        """The metrics that were logged."""
        super().__init__(type("Handler", (_Handler,), {"server_": self}))


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server_: MlflowServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = self.path.partition("?")[0].partition("/mlflow/")[2]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server_.requests.append((what, token))
        if token != self.server_.token:
            self._send(HTTPStatus.UNAUTHORIZED, {"error_code": "UNAUTHENTICATED", "message": f"no: {token}"})
        elif what == "experiments/get-by-name":
            self._send(HTTPStatus.NOT_FOUND, _ABSENT)
        else:
            if what == "runs/log-batch":
                self.server_.metrics += json.loads(body).get("metrics", [])
            self._send(HTTPStatus.OK, _ANSWERS.get(what, {}))

    def _send(self, status: HTTPStatus, answer: object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
