"""The embedded cluster's store keeps the API server's ways that a run relies on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import FIELD_MANAGER_OPERATOR, FIELD_MANAGER_TRAINER
from gemmatune_cli.local.store import EVENTS_KEPT, Store, StoreError
from gemmatune_operator.ports import AlreadyExistsError, ConflictError, Object

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
OPERATOR, TRAINER = FIELD_MANAGER_OPERATOR, FIELD_MANAGER_TRAINER


@pytest.fixture
def store() -> Store:
    return Store(None, clock=lambda: NOW)


def obj(kind: str, name: str, owner: Object | None = None, **fields: Any) -> Object:
    meta: Object = {"name": name, "namespace": "default"}
    if owner is not None:
        meta["ownerReferences"] = [{"kind": owner["kind"], "name": owner["metadata"]["name"], "uid": uid(owner)}]
    return {"kind": kind, "metadata": meta, **fields}


def uid(of: Object) -> str:
    return str(of["metadata"]["uid"])


def found(store: Store, kind: str, name: str) -> Object:
    result = store.get(kind, "default", name)
    assert result is not None
    return result


def status(name: str, version: str | None = None, **fields: Any) -> Object:
    meta = {"name": name, "namespace": "default"} | ({"resourceVersion": version} if version else {})
    return {"kind": "Run", "metadata": meta, "status": fields}


def test_creation_gives_identity_and_drops_the_status(store: Store) -> None:
    made = store.create(obj("Run", "a", spec={"x": 1}, status={"phase": "Succeeded"}))
    assert made["metadata"]["generation"] == 1
    assert made["metadata"]["creationTimestamp"] == "2030-01-02T03:04:05Z"
    assert uid(made) != uid(store.create(obj("Run", "b", spec={})))
    assert "status" not in found(store, "Run", "a")
    with pytest.raises(AlreadyExistsError):
        store.create(obj("Run", "a", spec={}))


def test_what_comes_out_is_a_copy(store: Store) -> None:
    made = store.create(obj("Run", "a", spec={"x": {"y": 1}}))
    made["spec"]["x"]["y"] = 2
    store.list("Run")[0]["spec"]["x"]["y"] = 3
    assert found(store, "Run", "a")["spec"] == {"x": {"y": 1}}


def test_only_another_spec_is_another_generation_and_status_is_apart(store: Store) -> None:
    store.create(obj("Run", "a", spec={"x": 1}))
    store.apply_status(status("a", phase="Pending"), OPERATOR)
    assert store.write_spec("Run", "default", "a", {"x": 1})["metadata"]["generation"] == 1
    changed = store.write_spec("Run", "default", "a", {"x": 2}, {"retry": "1"})
    assert changed["metadata"]["generation"] == 2
    assert changed["metadata"]["annotations"] == {"retry": "1"}
    assert changed["status"] == {"phase": "Pending"}
    applied = store.apply_status(status("a", phase="Training") | {"spec": {"x": 9}}, OPERATOR)
    assert applied["spec"] == {"x": 2}
    assert applied["metadata"]["generation"] == 2


def test_every_change_and_only_a_change_is_a_new_version(store: Store) -> None:
    first = store.create(obj("Run", "a", spec={}))["metadata"]["resourceVersion"]
    second = store.apply_status(status("a", phase="Pending"), OPERATOR)["metadata"]["resourceVersion"]
    assert int(second) > int(first)
    assert store.apply_status(status("a", phase="Pending"), OPERATOR)["metadata"]["resourceVersion"] == second
    assert store.version == int(second)


def test_a_status_planned_from_an_older_version_is_refused(store: Store) -> None:
    version = store.create(obj("Run", "a", spec={}))["metadata"]["resourceVersion"]
    store.apply_status(status("a", progress={"step": 1}), TRAINER)
    with pytest.raises(ConflictError):
        store.apply_status(status("a", version, phase="Pending"), OPERATOR)
    assert "phase" not in found(store, "Run", "a")["status"]
    with pytest.raises(ConflictError):
        store.apply_status(status("gone", version, phase="Pending"), OPERATOR)


def test_a_manager_that_leaves_a_field_out_erases_its_own_and_nobody_elses(store: Store) -> None:
    store.create(obj("Run", "a", spec={}))
    store.apply_status(status("a", phase="Training", job="a-t1"), OPERATOR)
    store.apply_status(status("a", progress={"step": 1}, checkpoint={"step": 1}), TRAINER)
    store.apply_status(status("a", phase="Retrying"), OPERATOR)
    assert found(store, "Run", "a")["status"] == {
        "phase": "Retrying",
        "progress": {"step": 1},
        "checkpoint": {"step": 1},
    }
    store.apply_status(status("a", progress={"step": 2}), TRAINER)
    assert found(store, "Run", "a")["status"] == {"phase": "Retrying", "progress": {"step": 2}}


def test_force_takes_a_field_over(store: Store) -> None:
    store.create(obj("Run", "a", spec={}))
    store.apply_status(status("a", progress={"step": 1}), OPERATOR)
    store.apply_status(status("a", progress={"step": 2}), TRAINER)
    store.apply_status(status("a", phase="Training"), OPERATOR)
    assert found(store, "Run", "a")["status"] == {"progress": {"step": 2}, "phase": "Training"}


def test_a_deletion_names_the_uid_and_marks_jobs_and_pods_only(store: Store) -> None:
    job = store.create(obj("Job", "a-t1", spec={}))
    pod = store.create(obj("Pod", "a-t1-x", job, spec={"terminationGracePeriodSeconds": 60}))
    store.delete("Job", "default", "a-t1", "another uid")
    assert "deletionTimestamp" not in found(store, "Job", "a-t1")["metadata"]
    store.delete("Job", "default", "a-t1", uid(job))
    store.delete("Pod", "default", "a-t1-x", uid(pod))
    assert found(store, "Job", "a-t1")["metadata"]["deletionTimestamp"] == "2030-01-02T03:04:05Z"
    meta = found(store, "Pod", "a-t1-x")["metadata"]
    assert (meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"]) == ("2030-01-02T03:05:05Z", 60)
    store.delete("Pod", "default", "never was", "x")


def test_what_an_object_owns_goes_with_it(store: Store) -> None:
    run = store.create(obj("Run", "a", spec={}))
    job = store.create(obj("Job", "a-t1", run, spec={}))
    store.create(obj("Service", "a-t1", job, spec={}))
    other = store.create(obj("Job", "b-t1", spec={}))
    store.delete("Run", "default", "a", uid(run))
    assert store.get("Run", "default", "a") is None
    assert "deletionTimestamp" in found(store, "Job", "a-t1")["metadata"]
    store.remove("Job", "default", "a-t1")
    assert store.get("Service", "default", "a-t1") is None
    assert store.get("Job", "default", "b-t1") == other


def test_lists_are_by_kind_namespace_and_labels(store: Store) -> None:
    for name, labels in (("a", {"run": "x"}), ("b", {"run": "x", "role": "train"}), ("c", None)):
        made = obj("Job", name, spec={})
        if labels:
            made["metadata"]["labels"] = labels
        store.create(made)
    names = [item["metadata"]["name"] for item in store.list("Job", "default", {"run": "x"})]
    assert names == ["a", "b"]
    assert len(store.list("Job")) == 3
    assert store.list("Job", "elsewhere") == []
    assert store.list("Pod") == []


def test_old_events_give_way(store: Store) -> None:
    run = store.create(obj("Run", "a", spec={}))
    for number in range(EVENTS_KEPT + 5):
        store.record_event(run, "Normal", "Running", f"message {number}")
    messages = [event["message"] for event in store.list("Event")]
    assert len(messages) == EVENTS_KEPT
    assert messages[-1] == f"message {EVENTS_KEPT + 4}"


def test_a_second_store_goes_on_where_the_first_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "state" / "store.json"
    first = Store(path)
    made = first.create(obj("Run", "a", spec={"x": 1}))
    first.apply_status(status("a", phase="Training", job="a-t1"), OPERATOR)
    first.save()
    second = Store(path)
    assert second.version == first.version
    assert uid(found(second, "Run", "a")) == uid(made)
    second.apply_status(status("a", phase="Suspended"), OPERATOR)
    assert found(second, "Run", "a")["status"] == {"phase": "Suspended"}
    assert int(found(second, "Run", "a")["metadata"]["resourceVersion"]) > first.version
    second.save()
    assert [item.name for item in path.parent.iterdir()] == ["store.json"]


def test_nothing_is_written_when_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    store = Store(path)
    store.create(obj("Run", "a", spec={}))
    store.save()
    path.unlink()
    store.save()
    assert not path.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', json.dumps({"format": 99, "objects": []})])
def test_a_file_that_is_not_ours_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "store.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=str(path)):
        Store(path)
