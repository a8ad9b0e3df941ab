"""Where a run's state lies, and what may change between two `gft run`s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import validate
from gemmatune_api.changes import forbidden
from gemmatune_api.spec import FineTuneSpec
from gemmatune_cli.console import CommandError
from gemmatune_cli.local.locks import LockedError, locked
from gemmatune_cli.local.session import open_session, run_folder
from tests.support.resources import resource

ATTEMPTED = {"attempts": [{"number": 1, "job": "a-t1"}], "phase": "Training"}
OLD: dict[str, Any] = {
    "model": {"uri": "file:///m"},
    "dataset": {"uri": "file:///d", "text": {"template": "{x}"}},
    "training": {"maxSteps": 5, "microBatchSize": 1},
    "output": {"uri": "file:///o"},
    "accelerator": {"cpu": {}},
}


def test_the_state_of_a_local_output_lies_in_it_and_goes_with_it() -> None:
    assert run_folder("file:///data/my%20run/") == Path("/data/my run/.gemmatune")


def test_the_state_of_a_bucket_lies_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = run_folder("gs://bucket/runs/quotes")
    assert folder.parent == tmp_path / "gemmatune" / "runs"
    assert folder.name.startswith("quotes-")
    assert folder == run_folder("gs://bucket/runs/quotes/")
    assert folder != run_folder("gs://other/runs/quotes")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert run_folder("gs://b/x").is_relative_to("/home/me/.local/state/gemmatune")


def test_a_lock_names_its_holder_and_is_free_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lock"
    with locked(path), pytest.raises(LockedError, match=r"process [0-9]+"), locked(path, wait=False):
        pytest.fail("two hold the lock")
    with locked(path, wait=False):
        assert path.exists()


def paths(status: dict[str, Any], **changes: Any) -> list[str]:
    return [problem.path for problem in forbidden(OLD, OLD | changes, status)]


EVERY_FIELD: dict[str, Any] = {
    field.alias or name: {"changed": True} for name, field in FineTuneSpec.model_fields.items() if name != "training"
}


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = (tmp_path / "file" / "run").as_uri()
    found = validate.parse(resource(changes={"spec.output.uri": output, "spec.accelerator": {"cpu": {}}}))
    with pytest.raises(CommandError, match=r"^spec\.output\.uri: .*file/run.* cannot be written: Not a directory$"):
        open_session(found).__enter__()


def test_a_time_to_keep_the_resource_holds_for_a_cluster_alone(tmp_path: Path) -> None:
    changes = {"spec.output.uri": f"file://{tmp_path}/out", "spec.ttlAfterFinished": "1s"}
    with open_session(validate.parse(resource(changes=changes))) as session:
        (stored,) = session.store.list("GemmaFineTune")
        assert "ttlAfterFinished" not in stored["spec"]


def test_an_error_of_the_run_itself_is_not_put_on_the_output(tmp_path: Path) -> None:
    output = (tmp_path / "run").as_uri()
    found = validate.parse(resource(changes={"spec.output.uri": output, "spec.accelerator": {"cpu": {}}}))
    with pytest.raises(PermissionError, match="elsewhere"), open_session(found):
        raise PermissionError("elsewhere")


def test_before_the_first_attempt_everything_may_change() -> None:
    assert paths({}, **EVERY_FIELD) == []
    assert paths({"attempts": []}, **EVERY_FIELD) == []


def test_afterwards_every_field_is_fixed_but_three() -> None:
    changed = {**EVERY_FIELD, "suspend": False}
    free = {"suspend", "limits", "ttlAfterFinished"}
    assert set(paths(ATTEMPTED, **changed)) == {f"spec.{field}" for field in EVERY_FIELD if field not in free}


MOVABLE = {"accelerator", "provisioning", "backend", "mesh", "scheduling", "pod", "checkpoint"}


@pytest.mark.parametrize(
    ("status", "changes"),
    [(ATTEMPTED, {"suspend": True}), (ATTEMPTED | {"phase": "Failed"}, {"suspend": False})],
)
def test_a_suspended_or_failed_run_may_move(status: dict[str, Any], changes: dict[str, Any]) -> None:
    assert paths(status, **{field: {"changed": True} for field in MOVABLE}, **changes) == []
    training = {"maxSteps": 5, "microBatchSize": 2, "gradientCheckpointing": True}
    assert paths(status, **changes, training=training) == []
    assert paths(status, **changes, training={**training, "maxSteps": 6}) == ["spec.training.maxSteps"]


def test_training_is_compared_field_by_field() -> None:
    assert paths(ATTEMPTED, training=None) == ["spec.training.maxSteps", "spec.training.microBatchSize"]
    (problem,) = forbidden(OLD, OLD | {"training": {"maxSteps": 6, "microBatchSize": 1}}, ATTEMPTED)
    assert "fixed" in problem.message
    assert problem.found == "6, before: 5"
