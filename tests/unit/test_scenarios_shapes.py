"""Attempts with several pods in the reconcile loop: the Service comes first, once, and is never anybody else's."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.names import ConditionType
from gemmatune_operator.ports import Cluster, Object, UnavailableError
from tests.support.below import BELOW
from tests.support.play import NAMESPACE, PREPARED, SPEC, Play

TWO_NODES = {**SPEC, "accelerator": {"gpu": {"type": "nvidia-l4", "nodes": 2}}}


class DiesBefore:
    """A cluster whose API server goes away before an object of one kind is created."""

    def __init__(self, inner: Cluster, kind: str) -> None:
        self._inner, self._kind = inner, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def create(self, obj: Object) -> Object:
        role = obj["metadata"].get("labels", {}).get(names.LABEL_ROLE)
        if obj["kind"] == self._kind and role == "train":
            raise UnavailableError("away")
        return await self._inner.create(obj)


@pytest.fixture
def play() -> Play:
    found = Play(TWO_NODES)
    found.settings = BELOW
    found.look()
    return found


def services(play: Play) -> list[Object]:
    return play.store.list("Service", NAMESPACE)


def test_only_the_attempt_has_a_service(play: Play) -> None:
    assert services(play) == []
    play.prepared()
    (service,) = services(play)
    assert service["metadata"]["name"] == "quotes-t1"
    assert service["metadata"]["ownerReferences"][0]["uid"] == play.resource["metadata"]["uid"]
    assert play.job("quotes-t1")["spec"]["parallelism"] == 2


def test_a_single_pod_needs_no_service() -> None:
    alone = Play(SPEC)
    alone.look()
    alone.prepared()
    assert services(alone) == []


def test_a_crash_between_service_and_job_doubles_nothing(play: Play) -> None:
    """The Service of the recorded attempt is adopted, and the Job follows."""
    whole = play.cluster
    play.cluster = DiesBefore(whole, "Job")  # type: ignore[assignment]
    with pytest.raises(UnavailableError):
        play.ends("quotes-p1", 0, PREPARED)
    with pytest.raises(UnavailableError):
        play.look()
    assert play.jobs() == ["quotes-p1"]
    play.cluster = whole
    (service,) = services(play)
    play.look()
    assert [item["metadata"]["uid"] for item in services(play)] == [service["metadata"]["uid"]]
    assert play.jobs() == ["quotes-p1", "quotes-t1"]
    assert play.attempt.number == 1


@pytest.mark.parametrize(
    ("labels", "reason", "message"),
    [
        ({}, "NameConflict", "A Service quotes-t1 exists that this run does not own."),
        ({names.LABEL_RUN_UID: "old"}, "WaitingForCleanup", "The Service quotes-t1 belongs to an earlier run"),
    ],
)
def test_a_taken_service(play: Play, labels: dict[str, str], reason: str, message: str) -> None:
    owners = [{"kind": "X", "name": "x", "uid": "somebody", "controller": True}]
    meta = {"name": "quotes-t1", "namespace": NAMESPACE, "labels": labels, "ownerReferences": owners}
    foreign = play.store.create({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"a": 1}})
    play.prepared()
    assert play.condition(ConditionType.PROVISIONED) == ("False", reason)
    assert message in play.status.message
    assert play.jobs() == ["quotes-p1"], "no pod starts that the others could not find"
    play.store.remove("Service", NAMESPACE, "quotes-t1")
    play.wait(60)
    assert play.jobs() == ["quotes-p1", "quotes-t1"]
    assert services(play)[0]["metadata"]["uid"] != foreign["metadata"]["uid"]


@pytest.mark.parametrize(
    ("provisioning", "phase"),
    [
        ({"mode": "onDemand"}, "Failed"),
        ({"mode": "flexStart"}, "Provisioning"),
        ({"mode": "reservation", "reservation": "r"}, "Provisioning"),
    ],
)
def test_only_bounded_waits_end_at_the_pending_deadline(provisioning: Object, phase: str) -> None:
    waiting = Play({**SPEC, "provisioning": provisioning, "limits": {"pendingDeadline": "1h"}})
    waiting.look()
    waiting.prepared()
    waiting.wait(10)
    assert waiting.wait(3700).phase == phase
    assert waiting.attempt.provisioning == provisioning["mode"]
