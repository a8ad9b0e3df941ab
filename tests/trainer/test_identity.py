"""A metadata server that stays away for a while, as gke-metadata-server does when it restarts, and one that refuses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.auth import _exponential_backoff, compute_engine
from google.auth.compute_engine import _metadata
from google.auth.transport.requests import Request

from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT
from gemmatune_trainer import access, ownership, storage_gcs
from gemmatune_trainer.errors import AccessDenied, StorageUnavailable, explain
from gemmatune_trainer.storage import Storage, open_storage
from tests.support.fakegcs import FakeGcs
from tests.support.faultygcs import FaultyGcs
from tests.support.loopback import LoopbackServer
from tests.trainer.conftest import run_config

_ANSWERS = {
    "/token": {"access_token": "t", "expires_in": 1, "token_type": "Bearer"},
    "/service-accounts/": {"email": "trainer@example.com", "scopes": ["all"]},
    "/universe": "googleapis.com",
}


class Metadata(LoopbackServer):
    """Gives tokens that have to be fetched anew for every request; `away` breaks connections, `refuses` is a code."""

    def __init__(self) -> None:
        self.away = 0
        self.refuses = 0
        self.asked = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    server.asked += 1
                    server.away -= 1
                    away = server.away >= 0
                if away:
                    self.close_connection = True
                    return
                found = next((value for part, value in _ANSWERS.items() if part in self.path), None)
                self.send_response(server.refuses or 200)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def log_message(self, *_: object) -> None:
                """Nothing."""

        super().__init__(Handler)


@pytest.fixture
def metadata(fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """The storage's client is a real one of Compute Engine; only the waits between google-auth's own tries are cut."""
    monkeypatch.setattr(_exponential_backoff, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(0.001)))
    monkeypatch.setattr(storage_gcs, "AnonymousCredentials", compute_engine.Credentials)
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    with Metadata() as server:
        monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", server.endpoint.removeprefix("http://"))
        yield server


@pytest.fixture
def bucket(metadata: Metadata, fake_gcs: FakeGcs) -> Callable[[float], Storage]:
    return lambda patience: open_storage(f"gs://{fake_gcs.new_bucket()}/run", patience)


def test_a_token_that_cannot_be_refreshed_for_a_while(bucket: Callable[[float], Storage], metadata: Metadata) -> None:
    storage = bucket(30.0)
    storage.write("a", b"1")
    before, metadata.away = metadata.asked, 12  # more than google-auth's own tries for one refresh
    storage.write("b", b"2")
    assert metadata.asked > before + 12
    assert storage.read("b") == b"2"


def test_a_metadata_server_that_stays_away_is_no_refusal(
    bucket: Callable[[float], Storage], metadata: Metadata
) -> None:
    storage = bucket(0.5)
    storage.write("a", b"1")
    metadata.away = 1_000_000
    with pytest.raises(StorageUnavailable, match=r"writing .*run/b failed for 0 s: RefreshError"):
        storage.write("b", b"2")
    with pytest.raises(Exception) as caught:
        compute_engine.Credentials().refresh(Request())
    assert isinstance(explain(caught.value), StorageUnavailable)


def test_an_account_that_may_have_no_token_is_a_refusal(bucket: Callable[[float], Storage], metadata: Metadata) -> None:
    """The metadata server answers: asking for longer helps nobody, and the remedy is a grant."""
    storage = bucket(30.0)
    metadata.refuses = 403
    begun = time.monotonic()
    with pytest.raises(Exception) as caught:
        storage.write("b", b"2")
    assert time.monotonic() - begun < 10
    found = explain(caught.value)
    assert isinstance(found, AccessDenied)
    assert "objectUser" in found.remedy


def test_an_attempt_waits_for_rights_that_are_on_their_way(
    fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod alone, as before a preparation; elsewhere a refusal is told at once."""
    config = run_config(tmp_path / "model", tmp_path / "rows", f"gs://{fake_gcs.new_bucket()}/run")
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    with FaultyGcs(fake_gcs.endpoint) as proxy:
        monkeypatch.setenv(ENV_GCS_ENDPOINT, proxy.endpoint)
        ownership.claim(open_storage(config.output.uri), config, "revision", "data")
        proxy.fault("GET", r"run/run\.json", code=403)
        with pytest.raises(AccessDenied):
            access.claimed(config)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        fault = proxy.fault("GET", r"run/run\.json", code=403)
        storage, found = access.claimed(config)
    assert fault.met
    assert storage.uri == config.output.uri
    assert found.uid == config.run.uid
