"""A pod whose rights are still on their way: asked again, shown by its readiness, and the command that grants them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import (
    DEFAULT_CACHE,
    ENV_CACHE,
    ENV_SERVICE_ACCOUNT,
)
from gemmatune_operator.manifests import prepare as prepare_manifest
from gemmatune_trainer.access import granted
from gemmatune_trainer.errors import AccessDenied


class _Metadata(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        values = {"numeric-project-id": b"1234567", "project-id": b"my-project"}
        data = values.get(self.path.rpartition("/")[2], b"")
        self.send_response(200 if data and self.headers["Metadata-Flavor"] == "Google" else 404)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The surroundings of a pod on GKE: what the manifest tells it, and a metadata server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Metadata)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv(ENV_SERVICE_ACCOUNT, "gemmatune-trainer")
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_address[1]}")
    yield
    server.shutdown()
    server.server_close()


class Bucket:
    """Refuses the first `refusals` requests."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked = 0

    def ask(self) -> str:
        self.asked += 1
        if self.asked <= self.refusals:
            raise AccessDenied("writing gs://b/x is refused: 403")
        return "granted"


def test_a_refusal_by_a_bucket_is_asked_again(pod):
    bucket = Bucket(refusals=2)
    assert granted("gs://b/x", bucket.ask, patience=30.0, namespace="team") == "granted"
    assert bucket.asked == 3


def test_while_it_is_refused_a_file_says_so(pod: None, tmp_path: Path) -> None:
    """The pod's readiness probe looks at it: not ready while access is refused, and again afterwards."""
    command = [
        word.replace(DEFAULT_CACHE, str(tmp_path / "cache")) for word in prepare_manifest.READINESS["exec"]["command"]
    ]
    ready: list[bool] = []

    def ask() -> str:
        ready.append(subprocess.run(command, check=False).returncode == 0)
        if len(ready) < 3:
            raise AccessDenied("refused")
        return "granted"

    assert granted("gs://b/x", ask, patience=30.0, namespace="team") == "granted"
    assert ready == [True, False, False]
    assert subprocess.run(command, check=False).returncode == 0
    with pytest.raises(AccessDenied):
        granted("gs://b/x", Bucket(1000).ask, patience=0.1, namespace="team")
    assert subprocess.run(command, check=False).returncode == 0


def test_a_lasting_refusal_prints_the_command_that_grants_access(pod):
    bucket = Bucket(refusals=1000)
    with pytest.raises(AccessDenied) as caught:
        granted("gs://b/x", bucket.ask, patience=0.2, namespace="team")
    assert bucket.asked > 1
    assert caught.value.message == "writing gs://b/x is refused: 403"
    assert caught.value.remedy == (
        "Grant roles/storage.objectUser: gcloud storage buckets add-iam-policy-binding gs://b "
        "--role=roles/storage.objectUser --member=principal://iam.googleapis.com/projects/1234567/locations/global/"
        "workloadIdentityPools/my-project.svc.id.goog/subject/ns/team/sa/gemmatune-trainer"
    )


def test_refusals_elsewhere_are_told_at_once():
    bucket = Bucket(refusals=1000)
    with pytest.raises(AccessDenied):
        granted("file:///x", bucket.ask, patience=30.0, namespace="team")
    assert bucket.asked == 1
