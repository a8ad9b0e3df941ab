"""Checkpoints on a directory: what is trusted, kept, waited for and deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gemmatune_trainer.backends.base import Snapshot
from gemmatune_trainer.checkpoints import Checkpoints, Schedule
from gemmatune_trainer.errors import Interrupted, StorageUnavailable, TrainerError
from gemmatune_trainer.ownership import Claim, Fence, claim
from gemmatune_trainer.storage import StoredObject, crc32c
from gemmatune_trainer.storage_file import FileStorage
from tests.trainer.conftest import run_config

IDENTITY = {"resumeHash": "h", "dataHash": "d", "attempt": 1, "versions": {}}


class Slow(FileStorage):
    """A directory whose uploads wait for a gate, may fail, and may arrive damaged; it knows checksums."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.damaged = 0
        self.undeletable: TrainerError | None = None

    def upload(self, files: Mapping[str, Path], new: bool = False) -> None:
        self.gate.wait(10)
        if self.error:
            raise self.error
        super().upload(files, new)
        if self.damaged:
            self.damaged -= 1
            path = self.root / next(iter(files))
            path.write_bytes(path.read_bytes()[::-1])

    def list(self, prefix: str = "") -> Sequence[StoredObject]:
        return [replace(item, crc32c=crc32c(self.root / item.name)) for item in super().list(prefix)]

    def delete_found(self, items: Sequence[StoredObject]) -> None:
        if self.undeletable and items:
            raise self.undeletable
        super().delete_found(items)


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


def test_what_arrives_damaged_is_sent_again(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    checkpoints = make()
    storage: Slow = make.storage  # type: ignore[attr-defined]
    storage.damaged = 2
    checkpoints.save(5, taker(5))
    checkpoints.wait()
    assert (tmp_path / "out" / "checkpoints" / "step-00000005" / "state").read_text() == "state of 5"
    storage.damaged = 3
    checkpoints.save(10, taker(10))
    with pytest.raises(StorageUnavailable, match="arrives damaged, 3 times"):
        checkpoints.wait()
    found = make(attempt=2).newest()
    assert found is not None
    assert found.step == 5


def test_what_cannot_be_deleted_ends_no_run(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    checkpoints = make(keep=1)
    storage: Slow = make.storage  # type: ignore[attr-defined]
    storage.undeletable = StorageUnavailable("the bucket refuses")
    for step in (5, 10):
        checkpoints.save(step, taker(step))
        checkpoints.wait()
    assert steps(tmp_path / "out") == [5, 10]
    storage.undeletable = None
    checkpoints.save(15, taker(15))
    checkpoints.wait()
    assert steps(tmp_path / "out") == [15]


def test_the_last_one_goes_beside_an_upload_in_flight(make: Callable[..., Checkpoints]) -> None:
    checkpoints = make()
    storage: Slow = make.storage  # type: ignore[attr-defined]
    checkpoints.save(5, taker(5))
    checkpoints.wait()
    storage.gate.clear()
    checkpoints.save(10, taker(10))
    assert checkpoints.save_last(12, taker(12), seconds=0.2) == "its upload takes longer than 0 s"
    assert checkpoints.last_step == 5
    storage.gate.set()
    assert checkpoints.save_last(12, taker(12), seconds=30) == ""
    assert checkpoints.last_step == 12
    checkpoints.wait()
    assert checkpoints.last_step == 12, "an older one that lands later is not the newest"
    assert checkpoints.save_last(12, lambda: pytest.fail("it has landed"), seconds=30) == ""
    storage.error = StorageUnavailable("the bucket is away")
    assert checkpoints.save_last(13, taker(13), seconds=30) == "the bucket is away"
    make(attempt=2)
    storage.error = None
    with pytest.raises(Interrupted, match="attempt 2"):
        checkpoints.save_last(14, taker(14), seconds=30)


def test_waiting_ends_where_it_shall(make: Callable[..., Checkpoints]) -> None:
    checkpoints = make()
    storage: Slow = make.storage  # type: ignore[attr-defined]
    storage.gate.clear()
    checkpoints.save(5, taker(5))

    def look() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(10, lambda: pytest.fail("nothing is copied while it waits"), look)
    storage.gate.set()
    checkpoints.wait()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": []}, "names no file"),
        ({"step": 7}, "its step is 7, this run's is 5"),
        ({"version": 2}, "its version is 2"),
        ({"files": "x"}, "cannot be read"),
        ({"files": [{"name": "state"}]}, "cannot be read"),
        ({"resumeHash": "x"}, "its resumeHash is x"),
    ],
)
def test_a_manifest_that_does_not_fit(
    make: Callable[..., Checkpoints], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    checkpoints = make()
    checkpoints.save(5, taker(5))
    checkpoints.wait()
    path = tmp_path / "out" / "checkpoints" / "step-00000005" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    heir = make(attempt=2)
    assert heir.newest() is None
    assert heir.note.startswith("The checkpoint of step 5 is not used: ")
    assert words in heir.note


def test_every_single_byte_counts(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    """One bit changed anywhere, in a file or in its manifest: never another state than the one that was saved."""
    checkpoints = make()
    checkpoints.save(5, taker(5))
    checkpoints.wait()
    folder = tmp_path / "out" / "checkpoints" / "step-00000005"
    heir = make(attempt=2)
    for name in ("state", "manifest.json"):
        whole = (folder / name).read_bytes()
        for place in range(len(whole)):
            (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            heir._passed_over.clear()
            found = heir.newest()
            assert found is None or (found.folder / "state").read_text() == "state of 5", (name, place)
            assert name != "state" or found is None
        (folder / name).write_bytes(whole)


def test_pruned_by_a_zombie_while_it_is_read(make: Callable[..., Checkpoints]) -> None:
    """What was listed is gone, because something newer has landed: that is found."""
    zombie = make(keep=1)
    zombie.save(5, taker(5))
    zombie.wait()
    storage: Slow = make.storage  # type: ignore[attr-defined]
    heir = make(attempt=2)
    download, zombie._fence = storage.download, heir._fence  # it has passed its fence already

    def interrupted(files: Mapping[str, Path]) -> None:
        storage.download = download  # type: ignore[method-assign]
        zombie.save(10, taker(10))
        zombie.wait()
        download(files)

    storage.download = interrupted  # type: ignore[method-assign]
    found = heir.newest()
    assert found is not None
    assert found.step == 10


def test_the_manifest_names_what_it_vouches_for(make: Callable[..., Checkpoints], tmp_path: Path) -> None:
    checkpoints = make()
    checkpoints.save(5, taker(5))
    checkpoints.wait()
    folder = tmp_path / "out" / "checkpoints" / "step-00000005"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [{"name": "state", "size": 10, "crc32c": crc32c(folder / "state")}]
    assert manifest == {"version": 1, "step": 5, **IDENTITY, "files": files}


def test_when_a_checkpoint_is_due() -> None:
    by_steps = Schedule(every_steps=10, every_seconds=None, time=0.0)
    assert [step for step in range(4, 40) if by_steps.due(step, 0.0)] == [10, 20, 30]
    by_time = Schedule(every_steps=None, every_seconds=60, time=100.0)
    assert [now for now in range(100, 300, 25) if by_time.due(1, float(now))] == [175, 250]
