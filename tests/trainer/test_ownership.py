"""Who may write below an output prefix: every row of the contract's rules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import ownership
from gemmatune_trainer.errors import Interrupted, InvalidConfig, OutputInUse
from gemmatune_trainer.ownership import Claim, Fence, claim, read_claim
from gemmatune_trainer.storage import Storage, open_storage
from tests.support.fakegcs import FakeGcs
from tests.trainer.conftest import run_config


def gone(storage: Storage, owner: Claim) -> bool:
    return True


def there(storage: Storage, owner: Claim) -> bool:
    return False


def unknown(storage: Storage, owner: Claim) -> None:
    return None


@pytest.fixture(params=["file", "gs"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    uri = (tmp_path / "out").as_uri()
    if request.param == "gs":
        server: FakeGcs = request.getfixturevalue("fake_gcs")
        monkeypatch.setenv(ENV_GCS_ENDPOINT, server.endpoint)
        uri = f"gs://{server.new_bucket()}/out"
    return lambda **changes: run_config(tmp_path / "model", tmp_path / "data", uri, **changes)


def opened(config: RunConfig) -> Storage:
    return open_storage(config.output.uri)


def record(storage: Storage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read("run.json"))
    return found


def test_the_first_claim_is_written_and_stays(make: Callable[..., RunConfig]) -> None:
    config = make()
    storage = opened(config)
    mine = claim(storage, config, "rev", "data")
    assert record(storage) == {
        "uid": "uid-1", "namespace": "default", "name": "quotes", "resumeHash": mine.resume_hash, "dataHash": "data",
        "modelRevision": "rev",
    }  # fmt: skip
    assert claim(storage, config, "rev", "data") == mine
    assert read_claim(storage, config) == mine


def test_a_spec_corrected_before_its_first_attempt_replaces_the_record(make: Callable[..., RunConfig]) -> None:
    storage = opened(make())
    claim(storage, make(), "rev", "data")
    corrected = claim(storage, make(), "rev", "other data")
    assert record(storage)["resumeHash"] == corrected.resume_hash
    Fence.take(storage, corrected, 1)
    with pytest.raises(OutputInUse, match="attempts have been made") as caught:
        claim(storage, make(), "rev", "data")
    assert "new resource" in caught.value.remedy


def test_an_equal_run_takes_over_once_the_owner_is_gone(make: Callable[..., RunConfig]) -> None:
    storage = opened(make())
    old = claim(storage, make(), "rev", "data")
    fence = Fence.take(storage, old, 3)
    heir = make(uid="uid-2")
    with pytest.raises(OutputInUse, match=r"default/quotes .*still there"):
        claim(storage, heir, "rev", "data", there)
    with pytest.raises(OutputInUse, match="still there"):
        claim(storage, heir, "rev", "data", unknown)
    taken = claim(storage, heir, "rev", "data", gone)
    assert record(storage)["uid"] == "uid-2"
    Fence.take(storage, taken, 1).check()  # the old owner's attempt 3 does not count
    with pytest.raises(Interrupted, match="belongs to default/quotes by now"):
        fence.check()
    with pytest.raises(OutputInUse):
        read_claim(storage, make())


def test_another_run_needs_overwrite(make: Callable[..., RunConfig]) -> None:
    storage = opened(make())
    old = claim(storage, make(), "rev", "data")
    Fence.take(storage, old, 1)
    for name in ("manifest.json", "adapter/adapter_model.safetensors", "checkpoints/step-00000001/manifest.json",
                 "prepared/data/rows.arrow", "prepared/new/rows.arrow", "notes/mine.txt"):  # fmt: skip
        storage.write(name, b"old")
    with pytest.raises(OutputInUse, match="settings or data differ") as caught:
        claim(storage, make(uid="uid-2", rank=2), "rev", "new", gone)
    assert "overwrite" in caught.value.remedy
    with pytest.raises(OutputInUse, match="still there"):
        claim(storage, make(uid="uid-2", rank=2, overwrite=True), "rev", "new", there)
    claim(storage, make(uid="uid-2", rank=2, overwrite=True), "rev", "new", gone)
    # What a person put there stays, and what this run has prepared.
    assert [item.name for item in storage.list()] == ["notes/mine.txt", "prepared/new/rows.arrow", "run.json"]


def test_an_interrupted_overwrite_goes_on(make: Callable[..., RunConfig]) -> None:
    """The record is replaced, and then the process dies before everything is deleted."""
    storage = opened(make())
    config = make(overwrite=True)
    claim(storage, config, "rev", "data", gone)
    storage.write("manifest.json", b"of the run before")
    mine = claim(storage, config, "rev", "data", gone)
    assert [item.name for item in storage.list()] == ["run.json"]
    Fence.take(storage, mine, 1)
    storage.write("checkpoints/step-00000001/manifest.json", b"its own")
    claim(storage, config, "rev", "data", gone)
    assert len(storage.list("checkpoints/")) == 1


def test_the_fence(make: Callable[..., RunConfig]) -> None:
    config = make()
    storage = opened(config)
    mine = claim(storage, config, "rev", "data")
    first = Fence.take(storage, mine, 1)
    with pytest.raises(Interrupted, match="another process runs or ran as attempt 1"):
        Fence.take(storage, mine, 1)
    first.check()
    second = Fence.take(storage, mine, 2)
    with pytest.raises(Interrupted, match="attempt 2 has taken over from attempt 1"):
        first.check()
    with pytest.raises(Interrupted, match="attempt 2 has taken over"):
        Fence.take(storage, mine, 1)
    second.check()
    storage.delete(["run.json"])
    with pytest.raises(Interrupted, match="is gone"):
        second.check()


def test_a_foreign_record_is_refused(make: Callable[..., RunConfig]) -> None:
    storage = opened(make())
    storage.write("run.json", b"[1, 2]")
    with pytest.raises(OutputInUse, match="no record of a run"):
        claim(storage, make(), "rev", "data")


def test_settings_that_were_not_prepared(make: Callable[..., RunConfig]) -> None:
    storage = opened(make())
    with pytest.raises(InvalidConfig, match="not been prepared"):
        read_claim(storage, make())
    claim(storage, make(), "rev", "data")
    read_claim(storage, make(micro_batch_size=1))
    with pytest.raises(InvalidConfig, match="differ"):
        read_claim(storage, make(rank=2))


def test_a_live_process_holds_a_directory(tmp_path: Path) -> None:
    """The lock ends with its process, however it ends."""
    storage = open_storage((tmp_path / "out").as_uri())
    config = run_config(tmp_path / "model", tmp_path / "data", tmp_path / "out")
    owner = claim(storage, config, "rev", "data")
    code = (
        "import sys; from gemmatune_trainer import ownership, storage; "
        "ownership.hold(storage.open_storage(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, storage.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert ownership.is_gone(storage, owner) is False
        process.kill()
        process.wait()
    assert ownership.is_gone(storage, owner) is True
