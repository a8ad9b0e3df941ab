"""Checkpoints on a directory: what is trusted, kept, waited for and deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gemmatune_trainer.backends.base import Snapshot
from gemmatune_trainer.checkpoints import Checkpoints
from gemmatune_trainer.errors import Interrupted, StorageUnavailable
from gemmatune_trainer.ownership import Claim, Fence, claim
from gemmatune_trainer.run import _Schedule
from gemmatune_trainer.storage import crc32c
from gemmatune_trainer.storage_file import FileStorage
from tests.trainer.conftest import run_config

IDENTITY = {"resumeHash": "h", "dataHash": "d", "attempt": 1, "versions": {}}


class Slow(FileStorage):
    """A directory whose uploads wait for a gate, and may fail."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def upload(self, files: Mapping[str, Path]) -> None:
        self.gate.wait(10)
        if self.error:
            raise self.error
        super().upload(files)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Checkpoints]:
    storage = Slow(tmp_path / "out")
    config = run_config(tmp_path / "model", tmp_path / "data", tmp_path / "out")
    owner: Claim = claim(storage, config, "rev", "data")

    def build(
        attempt: int = 1, keep: int = 2, saved: Callable[[int, str], None] | None = None, **identity: str
    ) -> Checkpoints:
        fence = Fence.take(storage, owner, attempt)
        scratch = tmp_path / f"scratch-{attempt}"
        scratch.mkdir()
        return Checkpoints(storage, fence, scratch, {**IDENTITY, **identity}, keep, saved or (lambda step, uri: None))

    build.storage = storage  # type: ignore[attr-defined]
    return build


def taker(step: int) -> Callable[[], Snapshot]:
    """A snapshot of that step."""
    return lambda: lambda folder: (folder / "state").write_text(f"state of {step}") and None


def steps(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (root / "checkpoints").iterdir())


def test_the_newest_whole_one_is_restored_and_older_ones_are_pruned(
    make: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    told: list[tuple[int, str]] = []
    checkpoints = make(saved=lambda step, uri: told.append((step, uri)))
    assert checkpoints.newest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, taker(step))
    checkpoints.wait()
    assert steps(tmp_path / "out") == [10, 15]
    assert [step for step, _ in told] == [5, 10, 15]
    assert told[-1][1] == (tmp_path / "out" / "checkpoints" / "step-00000015").as_uri()
    found = make(attempt=2).newest()
    assert found is not None
    assert (found.step, (found.folder / "state").read_text()) == (15, "state of 15")


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest", "no manifest"])
def test_a_damaged_one_is_passed_over(make: Callable[..., Checkpoints], tmp_path: Path, damage: str) -> None:
    checkpoints = make()
    for step in (5, 10):
        checkpoints.save(step, taker(step))
    checkpoints.wait()
    folder = tmp_path / "out" / "checkpoints" / "step-00000010"
    if damage == "manifest":
        (folder / "manifest.json").write_text("{")
    elif damage in ("missing", "no manifest"):
        (folder / ("state" if damage == "missing" else "manifest.json")).unlink()
    else:
        (folder / "state").write_text("state" if damage == "cut" else "stale of 10")
    second = make(attempt=2)
    found = second.newest()
    assert found is not None
    assert found.step == 5
    second.save(10, taker(11))  # the step is done anew, in the damaged one's place
    second.wait()
    again = make(attempt=3).newest()
    assert again is not None
    assert (again.step, (again.folder / "state").read_text()) == (10, "state of 11")


@pytest.mark.parametrize("key", ["resumeHash", "dataHash"])
def test_another_runs_checkpoint_is_passed_over(make: Callable[..., Checkpoints], key: str) -> None:
    checkpoints = make()
    checkpoints.save(5, taker(5))
    checkpoints.wait()
    assert make(attempt=2, **{key: "other"}).newest() is None


def test_saving_waits_for_the_upload_in_flight(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    checkpoints = make()
    storage: Slow = make.storage  # type: ignore[attr-defined]
    storage.gate.clear()
    checkpoints.save(5, taker(5))  # returns at once: the upload goes on beside training
    assert checkpoints.last_step is None
    written: list[int] = []
    take = taker(10)
    second = threading.Thread(target=lambda: checkpoints.save(10, lambda: (written.append(10), take())[1]))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert not written
    storage.gate.set()
    second.join(10)
    checkpoints.wait()
    assert written == [10]
    assert checkpoints.last_step == 10


def test_an_upload_that_failed_is_told(make: Callable[..., Checkpoints]) -> None:
    checkpoints = make()
    storage: Slow = make.storage  # type: ignore[attr-defined]
    storage.error = StorageUnavailable("the bucket is away")
    checkpoints.save(5, taker(5))
    with pytest.raises(StorageUnavailable, match="away"):
        checkpoints.wait()
    storage.error = None
    checkpoints.poll()
    checkpoints.save(10, taker(10))
    checkpoints.wait()
    assert checkpoints.last_step == 10


def test_nothing_is_trusted_that_a_newer_attempt_has_fenced_off(
    make: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    checkpoints = make()
    storage: Slow = make.storage  # type: ignore[attr-defined]
    storage.gate.clear()
    checkpoints.save(5, taker(5))
    heir = make(attempt=2)
    storage.gate.set()
    with pytest.raises(Interrupted, match="attempt 2"):
        checkpoints.wait()
    assert heir.newest() is None
    assert not (tmp_path / "out" / "checkpoints" / "step-00000005" / "manifest.json").exists()
    heir.save(7, taker(7))
    heir.wait()
    assert steps(tmp_path / "out") == [7], "what the interrupted upload left is swept up"


def test_the_manifest_names_what_it_vouches_for(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    checkpoints = make()
    checkpoints.save(5, taker(5))
    checkpoints.wait()
    folder = tmp_path / "out" / "checkpoints" / "step-00000005"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [{"name": "state", "size": 10, "crc32c": crc32c(folder / "state")}]
    assert manifest == {"version": 1, "step": 5, **IDENTITY, "files": files}


def test_when_a_checkpoint_is_due() -> None:
    by_steps = _Schedule(every_steps=10, every_seconds=None, time=0.0)
    assert [step for step in range(4, 40) if by_steps.due(step, 0.0)] == [10, 20, 30]
    by_time = _Schedule(every_steps=None, every_seconds=60, time=100.0)
    assert [now for now in range(100, 300, 25) if by_time.due(1, float(now))] == [175, 250]
