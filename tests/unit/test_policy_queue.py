"""queue: Kueue holds a Job, admits it, and takes it back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api.names import ConditionType, Phase, Reason
from gemmatune_api.status import Counters
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.policies import queue
from gemmatune_operator.policies.attempt import attempt as step
from gemmatune_operator.policies.cleanup import cleanup
from gemmatune_operator.policies.finish import phase_of
from gemmatune_operator.policies.prepare import prepare
from gemmatune_operator.policies.provisioning import mode
from gemmatune_operator.views import JobView, job_view
from tests.support.situations import NOW, attempt, decision, ended_pod, failed_job, job, pod, resource, said, situation

C = ConditionType
TRAINED = {"training_time": rfc3339(NOW)}
HELD: dict[str, Any] = {"suspended": True, "queue": "gpus", "active": 0}


def look(current: Any, seen: JobView, seconds: float = 0, spec: Any = None) -> Decision:
    found = decision(current, counters=Counters(attempts=current.number), job=seen.name)
    return step(situation(resource(spec), now=NOW + timedelta(seconds=seconds), jobs=[seen]), found)


def test_a_held_job_is_queued() -> None:
    found = look(attempt(), job(**HELD))
    assert said(found, C.PROVISIONED) == ("False", "Queued")
    assert phase_of(found.status.conditions) == (Phase.QUEUED, C.PROVISIONED)
    assert "the queue gpus" in found.status.conditions[-1].message
    assert (found.wake, found.create, found.delete) == (None, (), ()), "its admission is an event"
    assert said(found, C.TRAINING) is None, "a first attempt has trained nothing that could be paused"
    later = look(attempt(2), job("quotes-t2", **HELD))
    assert said(later, C.TRAINING) == ("False", "Queued")
    assert phase_of(later.status.conditions)[0] is Phase.QUEUED


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"suspended": True}, True),
        ({}, False),
        ({"suspended": True, "complete": True}, False),
        ({"suspended": True, "failure_target": True}, False),
        ({"suspended": True, "deleting": True}, False),
    ],
)
def test_who_is_held(fields: dict[str, bool], expected: bool) -> None:
    assert queue.held(job(**fields)) == expected


@pytest.mark.parametrize(("name", "who"), [("gpus", "Kueue"), ("", "Somebody")])
def test_who_is_said_to_have_evicted_it(name: str, who: str) -> None:
    found = queue.evicted(attempt(**TRAINED), job(suspended=True, queue=name))
    assert found is not None
    assert found.message == f"{who} suspended the Job quotes-t1 while it trained."


def test_someone_else_suspended_it() -> None:
    found = look(attempt(), job(suspended=True, active=0))
    assert said(found, C.PROVISIONED) == ("False", "Queued")
    assert "not by the operator" in found.status.conditions[-1].message
    assert "spec.suspend" in found.remedies[C.PROVISIONED]


@pytest.mark.parametrize("spec", [{"limits": {"pendingDeadline": "10m"}}, {"provisioning": {"mode": "spot"}}])
def test_the_wait_for_nodes_begins_with_the_admission(spec: Any) -> None:
    waited = look(attempt(provisioning="spot"), job(**HELD), seconds=10**6, spec=spec)
    assert said(waited, C.FAILED) is None
    assert (waited.timers.pending_since, len(waited.status.attempts)) == (None, 1)
    admitted = NOW + timedelta(seconds=10**6)
    pending = job("quotes-t1", pod(phase="Pending", scheduled=False), resumed=admitted)
    begun = look(attempt(provisioning="spot"), pending, seconds=10**6 + 1, spec=spec)
    assert begun.timers.pending_since == rfc3339(admitted)
    assert (said(begun, C.FAILED), len(begun.status.attempts)) == (None, 1)
    over = look(attempt(provisioning="spot"), pending, seconds=10**6 + 1800, spec=spec)
    assert said(over, C.FAILED) == ("True", "DeadlineExceeded") or len(over.status.attempts) == 2


def test_a_job_that_never_ran_is_queued_again_under_the_same_attempt() -> None:
    found = look(attempt(), job("quotes-t1", pod(phase="Pending", deleted=NOW), **HELD))
    assert said(found, C.PROVISIONED) == ("False", "Queued")
    assert len(found.status.attempts) == 1


@pytest.mark.parametrize(
    ("current", "seen"),
    [
        (attempt(**TRAINED), job("quotes-t1", pod(deleted=NOW + timedelta(seconds=60)), **HELD)),
        (attempt(**TRAINED), job(**HELD)),
        (attempt(), job("quotes-t1", pod(started=NOW), pod(phase="Pending"), wanted=2, **HELD)),
    ],
    ids=["its pod ends", "its pod is gone", "one of two pods ran"],
)
def test_who_trained_is_stopped_first(current: Any, seen: JobView) -> None:
    found = look(current, seen)
    assert (found.status.attempts[0].reason, found.status.attempts[0].end_time) == ("EvictedByQueue", None)
    assert said(found, C.TRAINING) == ("True", "EvictedByQueue")
    seen_by = situation(jobs=[seen])
    assert [item.name for item in cleanup(seen_by, found).delete] == ["quotes-t1"]


def test_and_then_queues_again_for_free() -> None:
    stopped = attempt(**TRAINED, reason="EvictedByQueue", message="Kueue suspended it.")
    found = decision(stopped, counters=Counters(attempts=1))
    after = step(situation(), found)
    assert [(item.number, item.reason, item.counted) for item in after.status.attempts] == [
        (1, "EvictedByQueue", False),
        (2, "", None),
    ]
    assert after.counters == Counters(attempts=2, preemptions=1, queue_evictions=1)


def test_a_trainer_that_ended_before_its_job_was_looked_at() -> None:
    ended = failed_job(30, termination_message='{"message": "stopped", "step": 7}')
    found = look(attempt(**TRAINED), JobView(**{**_fields(ended), "suspended": True, "queue": "gpus"}))
    assert (found.status.attempts[0].reason, found.status.attempts[0].to_step) == ("EvictedByQueue", 7)
    diverged = failed_job(21)
    found = look(attempt(**TRAINED), JobView(**{**_fields(diverged), "suspended": True}))
    assert found.status.attempts[0].reason == "LossDiverged", "its own end tells more"
    done = job("quotes-t1", ended_pod(0, termination_message='{"manifest": "gs://b/m"}'), complete=True, **HELD)
    assert said(look(attempt(**TRAINED), done), C.SUCCEEDED) == ("True", "Completed")


def _fields(seen: JobView) -> dict[str, Any]:
    return {name: getattr(seen, name) for name in JobView.__dataclass_fields__}


def test_an_eviction_is_no_reason_to_pay_for_on_demand() -> None:
    spot = situation(resource({"provisioning": {"mode": "spot", "fallback": {"afterPreemptions": 2}}}))
    closed = attempt(end_time=rfc3339(NOW), reason=Reason.EVICTED_BY_QUEUE)
    assert mode(spot, decision(closed, counters=Counters(preemptions=2))) == "spot"
    assert mode(spot, decision(closed, counters=Counters(preemptions=3))) == "onDemand"


def test_a_preparation_that_somebody_holds_says_so() -> None:
    found = prepare(situation(now=NOW + timedelta(days=9)), prepare(situation(), decision(conditions=[])))
    assert found.create
    seen = situation(now=NOW + timedelta(days=9), jobs=[job("quotes-p1", suspended=True, active=0)])
    waiting = prepare(seen, Decision(status=found.status))
    assert said(waiting, C.PREPARED) == ("False", "Queued")
    assert said(waiting, C.FAILED) is None


def test_views_of_a_job() -> None:
    def seen(suspend: bool | None, *conditions: dict[str, str]) -> JobView:
        labels = {"kueue.x-k8s.io/queue-name": "gpus"}
        metadata = {"name": "a", "labels": labels, "creationTimestamp": rfc3339(NOW)}
        return job_view({"metadata": metadata, "spec": {"suspend": suspend}, "status": {"conditions": [*conditions]}})

    later = rfc3339(NOW + timedelta(hours=1))
    held = {"type": "Suspended", "status": "True", "lastTransitionTime": later}
    assert (seen(True).suspended, seen(True).queue, queue.pending_since(seen(True))) == (True, "gpus", None)
    assert (seen(False, held).suspended, seen(False).suspended, seen(None).suspended) == (True, False, False)
    admitted = seen(False, {**held, "status": "False"})
    assert (admitted.suspended, queue.pending_since(admitted)) == (False, NOW + timedelta(hours=1))
    assert queue.pending_since(seen(None)) == NOW
