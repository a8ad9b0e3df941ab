"""Runs on the embedded cluster while the API server says no, is away, or the operator dies in between."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_operator.ports import (
    ConflictError,
    Object,
    RefusedError,
    UnavailableError,
)
from gemmatune_operator.reconcile import LOOKS, reconcile
from tests.support.play import DONE, NAMESPACE, PREPARED, Moody, Play, ended, spec

pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.fixture
def play() -> Play:
    return Play()


def test_a_conflict_is_planned_anew(play: Play) -> None:
    conflicts = [ConflictError("stale"), ConflictError("stale")]
    moody = Moody(play.cluster, lambda name: conflicts.pop() if name == "apply_status" and conflicts else None)
    asyncio.run(reconcile(moody, NAMESPACE, "quotes", play.now, play.settings))
    assert play.jobs() == ["quotes-p1"]
    assert moody.calls.count("apply_status") == 3
    always = Moody(play.cluster, lambda name: ConflictError("stale") if name == "apply_status" else None)
    play.change(lambda spec: spec["training"].update(maxSteps=7))
    play.store.write_spec(names.KIND, NAMESPACE, "quotes", spec(training={"maxSteps": 8}))
    wake = asyncio.run(reconcile(always, NAMESPACE, "quotes", play.now, play.settings))
    assert (always.calls.count("apply_status"), wake) == (LOOKS, 1.0)


def test_a_deletion_that_meets_another_version_is_planned_anew(play: Play) -> None:
    """Nobody would hear of it otherwise: what was to go has not changed, and no watch tells of it."""
    play.look()
    play.prepared()
    play.runs("quotes-t1")
    play.store.write_spec(names.KIND, NAMESPACE, "quotes", {**play.resource["spec"], "suspend": True})
    conflicts = [ConflictError("another version")]
    moody = Moody(play.cluster, lambda name: conflicts.pop() if name == "delete" and conflicts else None)
    asyncio.run(reconcile(moody, NAMESPACE, "quotes", play.now, play.settings))
    assert moody.calls.count("delete") == 2
    assert play.job("quotes-t1")["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize("stands", ["failed", "suspended"])
def test_what_another_operator_starts_during_a_look_is_not_deleted(play: Play, stands: str) -> None:
    """Jobs are listed before the other's next attempt, pods after: its pod looks as if its Job were gone."""
    play.training()
    if stands == "failed":
        play.ends("quotes-t1", 10)
    else:
        play.change(lambda spec: spec.update(suspend=True))
        play.gone("quotes-t1")
    assert play.jobs() in (["quotes-p1", "quotes-t1"], ["quotes-p1"])
    listed = []

    def go_on() -> None:
        if stands == "failed":
            play.annotate("1")
        else:
            play.change(lambda spec: spec.update(suspend=False))

    def other(name: str) -> None:
        listed.append(name)
        if listed.count("list_objects") == 2 and name == "list_objects":
            thread = threading.Thread(target=go_on)
            thread.start()
            thread.join()

    moody = Moody(play.cluster, other)
    asyncio.run(reconcile(moody, NAMESPACE, "quotes", play.now, play.settings))
    assert "quotes-t2" in play.jobs()
    assert "deletionTimestamp" not in play.pod("quotes-t2")["metadata"]
    assert "deletionTimestamp" not in play.job("quotes-t2")["metadata"]
    assert moody.calls.count("delete") == 0


def test_nothing_is_created_before_it_is_recorded(play: Play) -> None:
    moody = Moody(play.cluster, lambda name: UnavailableError("away") if name == "apply_status" else None)
    with pytest.raises(UnavailableError):
        asyncio.run(reconcile(moody, NAMESPACE, "quotes", play.now, play.settings))
    assert "create" not in moody.calls


@pytest.mark.parametrize(
    ("owner", "labels", "deleting", "reason"),
    [
        ("somebody", {}, False, "NameConflict"),
        ("old-uid", {names.LABEL_RUN_UID: "old-uid"}, False, "WaitingForCleanup"),
        ("somebody", {}, True, "WaitingForCleanup"),
    ],
)
def test_a_taken_name(play: Play, owner: str, labels: dict[str, str], deleting: bool, reason: str) -> None:
    owners = [{"kind": "X", "name": "x", "uid": owner, "controller": True}]
    meta = {"name": "quotes-p1", "namespace": NAMESPACE, "labels": labels, "ownerReferences": owners}
    foreign = play.store.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {}})
    if deleting:
        play.store.delete("Job", NAMESPACE, "quotes-p1", foreign["metadata"]["uid"])
    for _ in range(3):
        asyncio.run(reconcile(play.cluster, NAMESPACE, "quotes", play.now, play.settings))
    assert (play.status.phase, play.status.reason) == ("Preparing", reason)
    assert play.events().count(reason) == 1, "one Event, however often it is tried"
    assert play.job("quotes-p1")["metadata"]["uid"] == foreign["metadata"]["uid"]
    play.store.remove("Job", NAMESPACE, "quotes-p1")
    assert play.wait(60).reason == "Preparing"
    assert play.job("quotes-p1")["metadata"]["uid"] != foreign["metadata"]["uid"]


def test_a_job_of_its_own_is_adopted(play: Play) -> None:
    """A Job that was created, but that the look does not see yet: a 409 tells, and it is no conflict."""

    class Blind(Moody):
        def __getattr__(self, name: str) -> Any:
            call = super().__getattr__(name)

            async def blind(*arguments: Any) -> Any:
                return [] if (name, arguments[0]) == ("list_objects", "Job") else await call(*arguments)

            return blind

    play.prepared()
    play.store.apply_status(_without_start(play), names.FIELD_MANAGER_OPERATOR)
    made, events = play.job("quotes-t1")["metadata"]["uid"], play.events()
    blind = Blind(play.cluster, lambda name: None)
    asyncio.run(reconcile(blind, NAMESPACE, "quotes", play.now, play.settings))
    assert "create" in blind.calls
    assert play.job("quotes-t1")["metadata"]["uid"] == made
    assert play.events() == events
    assert play.runs("quotes-t1").phase == "Training"
    assert play.attempt.number == 1


def _without_start(play: Play) -> Object:
    """The resource as it was before the Job of its attempt was seen."""
    found = play.resource
    found["status"]["attempts"][0].pop("startTime")
    return found


def test_a_refused_creation_is_told_once_and_tried_again(play: Play) -> None:
    refused = Moody(play.cluster, lambda name: RefusedError("no such thing") if name == "create" else None)
    for _ in range(3):
        wake = asyncio.run(reconcile(refused, NAMESPACE, "quotes", play.now, play.settings))
        assert wake is not None
    assert (play.status.reason, play.events().count("PolicyDenied")) == ("PolicyDenied", 1)
    assert "no such thing" in play.status.message
    assert play.look().reason == "Preparing"


@pytest.mark.parametrize("seed", range(12))
def test_crashes_lose_and_double_nothing(seed: int) -> None:
    """The operator dies at random calls, before or after they took effect; the story stays the same."""
    chance = random.Random(seed)
    play = Play()

    class Crash(BaseException):
        pass

    class Crashing(Moody):
        def __getattr__(self, name: str) -> Any:
            async def call(*arguments: Any) -> Any:
                if chance.random() < 0.12:
                    raise Crash
                answer = await getattr(self._inner, name)(*arguments)
                if chance.random() < 0.12:
                    raise Crash
                return answer

            return call

    steady, crashing = play.cluster, Crashing(play.cluster, lambda name: None)

    def look() -> None:
        play.cluster = crashing  # type: ignore[assignment]
        for _ in range(200):
            try:
                play.look()
                break
            except Crash:
                continue
        play.cluster = steady
        play.look()

    look()
    play.pod_status("quotes-p1", ended(0, PREPARED, "", play.now))
    for number, code in ((1, 30), (2, 137), (3, 0)):
        look()
        play.runs(f"quotes-t{number}")
        pod = play.pod(f"quotes-t{number}")["metadata"]["name"]
        play.store.write_status("Pod", NAMESPACE, pod, ended(code, "" if code else DONE, "", play.now))
        look()
    assert play.status.phase == "Succeeded"
    assert [item.reason for item in play.status.attempts] == ["Interrupted", "Killed", "Completed"]
    assert play.status.counters.model_dump(by_alias=True, exclude_none=True) == {  # type: ignore[union-attr]
        "attempts": 3, "retries": 1, "preemptions": 1, "outOfMemory": 0, "stalls": 0
    }  # fmt: skip
    assert play.jobs() == ["quotes-p1", "quotes-t1", "quotes-t2", "quotes-t3"]
    assert play.one_pod_each()
    assert len(play.pods_by_job) == 4, "no Job was made twice"
