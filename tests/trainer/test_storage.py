"""Storage on directories and on the real fake-gcs-server: the same behaviour behind one interface."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_trainer.errors import AccessDenied, InvalidConfig, StorageUnavailable
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, Storage, crc32c, files_below, open_storage
from tests.support.fakegcs import FakeGcs


@pytest.fixture(params=["file", "gs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "file":
        return open_storage((tmp_path / "out put").as_uri())
    server: FakeGcs = request.getfixturevalue("fake_gcs")
    monkeypatch.setenv(ENV_GCS_ENDPOINT, server.endpoint)
    return open_storage(f"gs://{server.new_bucket()}/runs/one/")


def test_read_and_write(storage: Storage) -> None:
    generation = storage.write("a/b.json", b"one")
    assert storage.read("a/b.json") == b"one"
    assert storage.read_generation("a/b.json") == (b"one", generation)
    again = storage.write("a/b.json", b"two")
    assert again != generation
    assert storage.read("a/b.json") == b"two"
    with pytest.raises(ObjectMissing, match=r"a/c\.json"):
        storage.read("a/c.json")
    assert storage.locate("a/b.json") == f"{storage.uri}/a/b.json"
    assert not storage.uri.endswith("/")


def test_parts_are_of_one_generation(storage: Storage) -> None:
    storage.write("rows.jsonl", b"0123456789")
    (item,) = storage.list()
    assert storage.read_part(item, 2, 5) == b"234"
    storage.write("rows.jsonl", b"abcdefghij")
    with pytest.raises(ObjectMissing, match=r"rows\.jsonl"):
        storage.read_part(item, 5, 7)
    storage.delete(["rows.jsonl"])
    with pytest.raises(ObjectMissing, match=r"rows\.jsonl"):
        storage.read_part(item, 5, 7)


def test_create_once(storage: Storage) -> None:
    storage.write("attempts/00001", b"mine", if_generation_match=0)
    with pytest.raises(PreconditionFailed, match="attempts/00001"):
        storage.write("attempts/00001", b"yours", if_generation_match=0)
    assert storage.read("attempts/00001") == b"mine"


def test_only_one_of_many_creates(storage: Storage) -> None:
    def create(number: int) -> bool:
        try:
            storage.write("manifest.json", str(number).encode(), if_generation_match=0)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [number for number, created in enumerate(pool.map(create, range(8))) if created]
    assert len(won) == 1
    assert storage.read("manifest.json") == str(won[0]).encode()


def test_replace_a_generation(storage: Storage) -> None:
    first = storage.write("run.json", b"1", if_generation_match=0)
    second = storage.write("run.json", b"2", if_generation_match=first)
    with pytest.raises(PreconditionFailed):
        storage.write("run.json", b"3", if_generation_match=first)
    assert storage.read_generation("run.json") == (b"2", second)
    with pytest.raises(PreconditionFailed):
        storage.write("other.json", b"3", if_generation_match=first)


def test_list_and_delete(storage: Storage) -> None:
    for name in ("b/2", "a/1", "b/10", "bc"):
        storage.write(name, name.encode())
    storage.write(".probe/x", b"hidden")
    assert [item.name for item in storage.list()] == ["a/1", "b/10", "b/2", "bc"]
    assert [(item.name, item.size) for item in storage.list("b/")] == [("b/10", 4), ("b/2", 3)]
    assert [item.name for item in storage.list("b")] == ["b/10", "b/2", "bc"]
    assert storage.list("nothing/") == []
    storage.delete(["b/2", "b/10", "never/was"])
    assert [item.name for item in storage.list()] == ["a/1", "bc"]


def test_files_go_up_and_come_back(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "small").write_bytes(b"x")
    (source / "deep" / "large").write_bytes(bytes(range(256)) * 40_000)  # more than one part of a resumable upload
    storage.upload(files_below(source, "checkpoints/step-1"))
    names = [item.name for item in storage.list("checkpoints/")]
    assert names == ["checkpoints/step-1/deep/large", "checkpoints/step-1/small"]
    target = tmp_path / "target"
    storage.download({name: target / name for name in names})
    assert crc32c(target / names[0]) == crc32c(source / "deep" / "large")
    with pytest.raises(ObjectMissing, match="gone"):
        storage.download({names[1]: target / "s", "checkpoints/step-1/gone": target / "gone"})


def test_crc32c_is_that_of_cloud_storage(fake_gcs: FakeGcs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"gemma" * 1000)
    blob = fake_gcs.client().bucket(fake_gcs.new_bucket()).blob("file")
    blob.upload_from_filename(str(tmp_path / "file"))
    blob.reload()
    assert crc32c(tmp_path / "file") == blob.crc32c


def test_a_bucket_that_does_not_exist(fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    storage = open_storage("gs://no-such-bucket/x")
    with pytest.raises(InvalidConfig, match="no-such-bucket"):
        storage.list()
    with pytest.raises(InvalidConfig, match="no-such-bucket"):
        storage.write("a", b"")


def test_other_schemes_are_refused() -> None:
    for uri in ("s3://bucket/x", "gs://", "/tmp/x", "file://host/x"):
        with pytest.raises(InvalidConfig, match="is no storage"):
            open_storage(uri)


class Proxy:
    """In front of fake-gcs-server: `answer(method, path, tries)` may give a status instead of asking the server.

    With `lose` true the server is asked, and its answer is then replaced by that status.
    """

    def __init__(self, target: str, answer: Callable[[str, str, int], int | None], lose: bool = False) -> None:
        tries: dict[str, int] = {}
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    count = tries[self.command] = tries.get(self.command, 0) + 1
                status = answer(self.command, self.path, count)
                content = b"{}"
                if status is None or lose:
                    headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                    found = requests.request(self.command, target + self.path, data=body, headers=headers, timeout=10)
                    content = found.content if status is None else content
                    status = status or found.status_code
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.tries = tries
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def through_proxy(
    fake_gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[..., tuple[Storage, Proxy]]:
    def make(
        answer: Callable[[str, str, int], int | None], lose: bool = False, patience: float = 30
    ) -> tuple[Storage, Proxy]:
        proxy = Proxy(fake_gcs.endpoint, answer, lose)
        request.addfinalizer(proxy.stop)
        monkeypatch.setenv(ENV_GCS_ENDPOINT, proxy.endpoint)
        assert urlsplit(proxy.endpoint).hostname == "127.0.0.1"
        return open_storage(f"gs://{fake_gcs.new_bucket()}/run", patience), proxy

    return make


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_refusals_are_tried_again(through_proxy: Callable[..., tuple[Storage, Proxy]], status: int) -> None:
    storage, proxy = through_proxy(lambda method, path, tries: status if tries < 3 else None)
    storage.write("a", b"1", if_generation_match=0)
    assert proxy.tries["POST"] == 3
    assert [item.name for item in storage.list()] == ["a"]


def test_a_create_whose_answer_got_lost_is_recognised_as_mine(
    through_proxy: Callable[..., tuple[Storage, Proxy]],
) -> None:
    storage, proxy = through_proxy(
        lambda method, path, tries: 503 if (method, tries) == ("POST", 1) else None, lose=True
    )
    generation = storage.write("attempts/00001", b"nonce", if_generation_match=0)
    assert proxy.tries["POST"] == 2
    assert storage.read_generation("attempts/00001") == (b"nonce", generation)


def test_a_create_that_somebody_else_won_meanwhile_is_not_mine(
    through_proxy: Callable[..., tuple[Storage, Proxy]], fake_gcs: FakeGcs
) -> None:
    def answer(method: str, path: str, tries: int) -> int | None:
        if (method, tries) != ("POST", 1):
            return None
        fake_gcs.client().bucket(storage.uri.split("/")[2]).blob("run/attempts/00001").upload_from_string(b"theirs")
        return 503

    storage, _ = through_proxy(answer)
    with pytest.raises(PreconditionFailed):
        storage.write("attempts/00001", b"mine", if_generation_match=0)


def test_lasting_refusals_end_at_once(through_proxy: Callable[..., tuple[Storage, Proxy]]) -> None:
    asked: list[str] = []

    def answer(method: str, path: str, tries: int) -> int:
        asked.append(path)
        return 403

    storage, _ = through_proxy(answer)
    with pytest.raises(AccessDenied, match="run/a is refused") as caught:
        storage.read("a")
    assert "objectUser" in caught.value.remedy
    assert sum("/o/run%2Fa" in path for path in asked) == 1  # the library may ask for the bucket besides


def test_a_storage_that_stays_away(through_proxy: Callable[..., tuple[Storage, Proxy]]) -> None:
    storage, _ = through_proxy(lambda method, path, tries: 503, patience=1)
    for work in (storage.list, lambda: storage.read("a"), lambda: storage.write("a", b"")):
        with pytest.raises(StorageUnavailable, match="failed for 1 s"):
            work()
