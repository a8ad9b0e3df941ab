"""A bucket that refuses a new namespace at first: the resource says so while the preparation asks again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from gemmatune_api.names import ENV_GCS_ENDPOINT
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.standin import write_small_model

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


class Gate(ThreadingHTTPServer):
    """Answers 403 until it is opened, and then what the bucket behind it answers."""

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.open = behind, threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Gate

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.open.is_set():
            self._answer(403, {}, b'{"error": {"code": 403, "message": "does not have storage.objects.create"}}')
            return
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")}
        found = requests.request(self.command, self.server.behind + self.path, headers=kept, data=body, timeout=30)
        headers = {name: value for name, value in found.headers.items() if name.lower() == "content-type"}
        self._answer(found.status_code, headers, found.content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass

    def _answer(self, code: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def gate(fake_gcs: FakeGcs) -> Iterator[Gate]:
    server = Gate(fake_gcs.endpoint)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.timeout(300)
def test_waiting_for_access(
    crd: ControlPlane, namespace: str, node: NodeAgent, tmp_path: Path, gate: Gate, bucket: str
) -> None:
    """The real preparation's process behind a node's probe: WaitingForAccess, and Prepared once it is let in."""
    write_small_model(tmp_path / "model", "2")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(32)))
    stage = Stage(crd.api, namespace)
    environment = f"{ENV_GCS_ENDPOINT}={gate.endpoint}"
    operator = OperatorProcess(
        crd.operator_kubeconfig,
        tmp_path / "operator.log",
        namespaces=[namespace],
        arguments=["--trainer-env", environment],
    )
    try:
        stage.create(
            model={"uri": f"file://{tmp_path}/model"},
            dataset={"uri": f"file://{rows}", "text": {"template": "{text}"}},
            output={"uri": f"gs://{bucket}/run"},
            accelerator={"cpu": {}},
            training={"maxSteps": 2, "globalBatchSize": 4},
        )
        status = stage.wait(lambda now: now.get("reason") == "WaitingForAccess", "WaitingForAccess", 150)
        assert status["phase"] == "Preparing"
        assert "two minutes" in status["message"]
        assert "principal" in status["remedy"]
        gate.open.set()
        status = stage.wait(lambda now: now["phase"] not in ("Pending", "Preparing"), "the preparation's end", 120)
        assert stage.condition("Prepared")["status"] == "True", status
        assert [event["reason"] for event in stage.events()].count("WaitingForAccess") == 1
    finally:
        assert operator.stop() == 0
