"""An attempt that is held up, at whichever of its requests, while its successor writes: nothing of that is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import manifest, merged
from gemmatune_trainer.backends.base import Snapshot
from gemmatune_trainer.checkpoints import Checkpoints
from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.merge import fetch_adapter
from gemmatune_trainer.ownership import Claim, Fence, claim
from gemmatune_trainer.result import Result
from gemmatune_trainer.storage import PreconditionFailed, Storage, open_storage
from tests.support.fakegcs import FakeGcs
from tests.support.faultygcs import FaultyGcs
from tests.support.soak import SOAK
from tests.trainer.conftest import run_config
from tests.trainer.test_report import result as result  # the fixture

IDENTITY = {"resumeHash": "h", "dataHash": "d", "attempt": 1, "versions": {}}
ASKED = ("read", "read_generation", "write", "list", "delete", "delete_found", "upload", "download")


class Frozen:
    """A storage whose process is held up before its `number`-th request, until `meanwhile` is through."""

    def __init__(self, storage: Storage, number: int, meanwhile: Callable[[], None]) -> None:
        self._storage = storage
        self._left = number
        self._meanwhile = meanwhile

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name not in ASKED:
            return found

        def ask(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._meanwhile()
            return found(*arguments, **options)

        return ask

    @property
    def held(self) -> bool:
        """Whether it came to that request."""
        return self._left <= 0


@pytest.fixture(params=["file", "gs"])
def new_place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], str]]:
    """URIs of empty prefixes."""
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    made: list[str] = []
    if request.param == "file":
        yield lambda: (made.append(""), (tmp_path / f"out-{len(made)}").as_uri())[1]
        return
    server: FakeGcs = request.getfixturevalue("fake_gcs")
    with FaultyGcs(server.endpoint) as proxy:
        monkeypatch.setenv(ENV_GCS_ENDPOINT, proxy.endpoint)
        yield lambda: f"gs://{server.new_bucket()}/run"


@pytest.fixture
def numbers(request: pytest.FixtureRequest) -> range:
    """Requests to be held up at; in a bucket one of three, but in a soak all of them."""
    every = 1 if "file" in request.node.name or SOAK else 3
    return range(1, 100, every)


def owned(uri: str, tmp_path: Path) -> tuple[RunConfig, Claim]:
    config = run_config(tmp_path / "model", tmp_path / "data", uri)
    return config, claim(open_storage(uri), config, "rev", "data")


class Attempts:
    """The attempts of one run, each with a client of its own."""

    def __init__(self, uri: str, tmp_path: Path) -> None:
        self.uri = uri
        self._folder = tmp_path / "scratch"
        shutil.rmtree(self._folder, ignore_errors=True)
        _, self._claim = owned(uri, tmp_path)

    def checkpoints(self, number: int, storage: Any = None) -> Checkpoints:
        storage = storage or open_storage(self.uri)
        scratch = self._folder / str(number)
        scratch.mkdir(parents=True)
        fence = Fence.take(open_storage(self.uri), self._claim, number).beside(storage)
        return Checkpoints(storage, fence, scratch, IDENTITY, 1, lambda step, uri: None)


def taker(text: str) -> Callable[[], Snapshot]:
    def write(folder: Path) -> None:
        for name in ("adapter", "optimizer", "rng"):
            (folder / name).write_text(f"{name} {text}")

    return lambda: write


def comes_through(work: Callable[[], object]) -> bool:
    """Whether it does, and is not ended by having been taken over."""
    with suppress(Interrupted):
        work()
        return True
    return False


def test_a_checkpoint_of_the_successor_stays(new_place: Callable[[], str], numbers: range, tmp_path: Path) -> None:
    def inherit(attempts: Attempts, written: list[int]) -> None:
        checkpoints = attempts.checkpoints(2)
        newest = checkpoints.newest()
        assert newest is not None
        written.append(newest.step + 3)
        checkpoints.save(written[0], taker("of the heir"))
        checkpoints.wait()

    for number in numbers:
        attempts, written = Attempts(new_place(), tmp_path), list[int]()
        first = attempts.checkpoints(1)
        first.save(3, taker("of the first"))
        first.wait()
        storage = Frozen(open_storage(attempts.uri), number, partial(inherit, attempts, written))
        first._storage, first._fence = storage, first._fence.beside(storage)  # type: ignore[assignment, arg-type]
        first.save(6, taker("of the zombie"))
        assert comes_through(first.wait) or storage.held
        newest = attempts.checkpoints(3).newest()
        assert newest is not None, number
        assert newest.step == max([6, *written]), number
        if written:
            assert (newest.folder / "optimizer").read_text() == "optimizer of the heir", number
        if not storage.held:
            break
    assert number > 10


def test_the_result_of_the_successor_stays(
    new_place: Callable[[], str], numbers: range, result: Result, tmp_path: Path
) -> None:
    """What the manifest names is there, byte for byte: a merge takes it."""

    def publish(attempt: int, text: str, uri: str, storage: Any = None) -> None:
        folder = tmp_path / f"result-{attempt}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_model.safetensors").write_text(text)
        config, owner = owned(uri, tmp_path)
        storage = storage or open_storage(uri)
        fence = Fence.take(open_storage(uri), owner, attempt).beside(storage)
        made = replace(result, config=config.model_copy(update={"attempt": attempt}), claim=owner)
        manifest.publish(made, storage, fence, folder / "adapter", folder)

    for number in numbers:
        uri = new_place()
        _, owner = owned(uri, tmp_path)
        storage = Frozen(open_storage(uri), number, partial(publish, 2, "heir", uri))
        assert comes_through(partial(publish, 1, "zombie", uri, storage)) or storage.held
        found = manifest.find(open_storage(uri), owner.resume_hash)
        assert found is not None, number
        folder = fetch_adapter(open_storage(uri), found, tmp_path / f"fetched-{number}")
        if not storage.held:
            break
        assert (folder / "adapter_model.safetensors").read_text() == "heir", number
    assert number > 10


def test_the_merge_of_the_successor_stays(new_place: Callable[[], str], numbers: range, tmp_path: Path) -> None:
    inputs = merged.Inputs("h", "file:///model", "rev", "sum")
    scores = merged.Scores(1, False, 1, 1.0, 1.0, 1.0, 0.0, 0.0)

    def publish(attempt: int, text: str, uri: str, storage: Any = None) -> None:
        folder = tmp_path / f"merged-{attempt}"
        folder.mkdir(exist_ok=True)
        for name in ("model-1.safetensors", "model-2.safetensors"):
            (folder / name).write_text(f"{name} {text}")
        _, owner = owned(uri, tmp_path)
        storage = storage or open_storage(uri)
        fence = Fence.take(open_storage(uri), owner, attempt, merge=True).beside(storage)
        merged.publish(storage, fence, folder, inputs, scores, lambda: None)

    for number in numbers:
        uri = new_place()
        storage = Frozen(open_storage(uri), number, partial(publish, 2, "heir", uri))
        assert comes_through(partial(publish, 1, "zombie", uri, storage)) or storage.held
        assert merged.find(open_storage(uri), inputs) == scores, number
        if not storage.held:
            break
        read = open_storage(uri).read("merged/model-2.safetensors")
        assert read == b"model-2.safetensors heir", number
    assert number > 7


def test_what_is_written_anew_is_not_deleted(new_place: Callable[[], str]) -> None:
    storage = open_storage(new_place())
    for name in ("a", "b", "c"):
        storage.write(name, b"1")
    listed = storage.list()
    storage.write("b", b"2")
    storage.delete(["c"])
    storage.delete_found(listed)
    assert [item.name for item in storage.list()] == ["b"]
    assert storage.read("b") == b"2"


def test_what_shall_be_new_is_not_written_over(new_place: Callable[[], str], tmp_path: Path) -> None:
    storage = open_storage(new_place())
    files = {name: tmp_path / name for name in ("a", "b", "large")}
    for name, path in files.items():
        path.write_bytes(name.encode() * (4_000_000 if name == "large" else 1))
    storage.write("b", b"another's")
    storage.write("large", b"another's")
    with pytest.raises(PreconditionFailed, match=r"/(b|large)$"):
        storage.upload(files, new=True)
    assert [storage.read(name) for name in files] == [b"a", b"another's", b"another's"]
    storage.delete(["b", "large"])
    storage.upload(files, new=True)  # "a" holds what it shall already
    assert storage.read("large") == files["large"].read_bytes()


def test_an_upload_whose_answer_got_lost_counts(
    fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with FaultyGcs(fake_gcs.endpoint) as proxy:
        monkeypatch.setenv(ENV_GCS_ENDPOINT, proxy.endpoint)
        storage = open_storage(f"gs://{fake_gcs.new_bucket()}/run")
        fault = proxy.fault("POST", r"run/a$", lose=True)
        storage.upload({"a": tmp_path / "a"}, new=True)
        assert fault.met
        assert storage.read("a") == b"mine"


DELETING = """
import sys
from gemmatune_trainer.storage import open_storage
storage = open_storage(sys.argv[1])
print(flush=True)
while True:
    storage.delete_found([item for item in storage.list() if item.size == 1])
"""


def test_a_file_that_changes_while_it_is_deleted_stays(tmp_path: Path) -> None:
    """Two processes on one directory, over and over: what one writes, the other's old listing never takes."""
    storage = open_storage(tmp_path.as_uri())
    storage.write("a", b"0")
    with subprocess.Popen([sys.executable, "-c", DELETING, tmp_path.as_uri()], stdout=subprocess.PIPE) as deleting:
        assert deleting.stdout is not None
        deleting.stdout.readline()
        try:
            for _ in range(100):
                storage.write("a", b"1")
                storage.write("a", b"22")
                assert storage.read("a") == b"22"
        finally:
            deleting.kill()
