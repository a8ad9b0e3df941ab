"""attempt: recorded first, created when its way is free, watched."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gemmatune_api.names import Reason
from gemmatune_api.status import (
    CheckpointStatus,
    Counters,
    Timers,
)
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.observe import Refusal
from gemmatune_operator.policies import describe
from gemmatune_operator.policies.attempt import KEPT, attempt
from gemmatune_operator.policies.prepare import PENDING_LOOK_SECONDS
from gemmatune_operator.views import JobView
from tests.support.attempts import ONE, C, created, look, running
from tests.support.situations import (
    NOW,
    decision,
    ended_pod,
    job,
    pod,
    resource,
    said,
    situation,
)
from tests.support.situations import attempt as an_attempt

# --- recorded, then created ---


def test_the_first_attempt_is_recorded_and_created() -> None:
    found = look(decision(checkpoint=CheckpointStatus(step=40, uri="gs://b/c")))
    (recorded,) = found.status.attempts
    assert (recorded.number, recorded.job, recorded.start_time, recorded.from_step) == (1, "quotes-t1", None, 40)
    assert (found.status.job, found.status.counters) == ("quotes-t1", ONE)
    assert created(found) == ["quotes-t1"]
    assert said(found, C.PROVISIONED) == ("False", "Provisioning")


def test_a_recorded_attempt_without_a_job_is_created_not_vanished() -> None:
    found = look(decision(an_attempt(start_time=None), counters=ONE))
    assert created(found) == ["quotes-t1"]
    assert found.status.counters == ONE


def test_a_plan_that_somebody_removed_is_made_again() -> None:
    lost = decision(an_attempt(start_time=None), counters=ONE).update(plan=None)
    found = look(lost)
    assert created(found) == ["quotes-t1"]
    assert found.status.plan is not None
    unknown = look(lost, raw=resource({"model": {"uri": "hf://my-org/own-model"}}))
    assert said(unknown, C.FAILED) == ("True", "InvalidSpec")
    assert created(unknown) == []


def test_an_attempt_after_a_pause_says_so() -> None:
    resumed = look(decision(an_attempt(end_time=rfc3339(NOW)), counters=ONE))
    assert resumed.status.attempts[1].job == "quotes-t2"
    assert said(resumed, C.TRAINING) == ("False", "Provisioning")
    assert said(look(decision()), C.TRAINING) is None


@pytest.mark.parametrize(
    ("old", "free"),
    [
        (job("quotes-t1", failed=True, active=0), True),
        (job("quotes-t1", complete=True, active=0), True),
        (job("quotes-t1", failed=True, active=0, terminating=1), False),
        (job("quotes-t1", deleting=True), False),
        (job("quotes-t1", failure_target=True), False),
        (job("quotes-t1", pod(deleted=NOW - timedelta(seconds=61)), deleting=True), True),
        (job("quotes-p1", complete=True, active=0), True),
    ],
)
def test_the_next_waits_for_the_last(old: JobView, free: bool) -> None:
    closed = an_attempt(1, end_time=rfc3339(NOW))
    found = look(decision(closed, an_attempt(2, start_time=None), counters=Counters(attempts=2)), old)
    assert created(found) == (["quotes-t2"] if free else [])
    assert free or found.wake == PENDING_LOOK_SECONDS


def test_a_pod_that_is_ending_says_when_to_look() -> None:
    ending = job("quotes-t1", pod(deleted=NOW), deleting=True)
    found = look(decision(an_attempt(1, end_time=rfc3339(NOW)), an_attempt(2, start_time=None)), ending)
    assert (created(found), found.wake) == ([], 61)


def test_its_time_has_to_come() -> None:
    waiting = decision(an_attempt(start_time=None), next_attempt_time=rfc3339(NOW + timedelta(seconds=9)))
    assert (created(look(waiting)), look(waiting).wake) == ([], 9)
    due = look(waiting, seconds=9)
    assert (created(due), due.status.next_attempt_time) == (["quotes-t1"], None)


def test_a_refused_job() -> None:
    refusal = Refusal("quotes-t1", Reason.POLICY_DENIED, "no")
    found = look(decision(an_attempt(start_time=None)), refusal=refusal)
    assert said(found, C.PROVISIONED) == ("False", "PolicyDenied")
    assert (created(found), found.wake is not None) == ([], True)


def test_only_twenty_attempts_are_kept() -> None:
    many = [an_attempt(number, end_time=rfc3339(NOW)) for number in range(1, KEPT + 1)]
    found = look(decision(*many, counters=Counters(attempts=57)))
    assert len(found.status.attempts) == KEPT
    assert found.status.attempts[-1].number == 58
    assert found.status.attempts[0].number == 2


def test_a_broken_spec_gets_no_new_attempt() -> None:
    resolved = describe.resolved(situation().spec)
    raw = resource({"training": {"maxSteps": 0}}, status={"resolved": resolved})
    for found in (decision(), decision(an_attempt(start_time=None))):
        ended = attempt(situation(raw), found)
        assert said(ended, C.FAILED) == ("True", "InvalidSpec")
        assert created(ended) == []


def test_a_recorded_attempt_follows_the_current_provisioning() -> None:
    raw = resource({"provisioning": {"mode": "spot"}})
    found = attempt(situation(raw), decision(an_attempt(start_time=None, provisioning="onDemand")))
    assert found.status.attempts[0].provisioning == "spot"
    (made,) = [item for item in found.create if item["kind"] == "Job"]
    assert made["spec"]["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


# --- watched ---


def test_seen() -> None:
    found = look(decision(an_attempt(start_time=None), counters=ONE), job("quotes-t1", pod(phase="Pending")), seconds=3)
    assert found.status.attempts[0].start_time == rfc3339(NOW)
    assert found.status.timers == Timers(pending_since=rfc3339(NOW))
    assert created(found) == []


def test_runs() -> None:
    waiting = decision(an_attempt(), timers=Timers(pending_since=rfc3339(NOW)), counters=ONE)
    began = NOW + timedelta(seconds=4)
    found = look(waiting, job("quotes-t1", pod(started=began)), seconds=9)
    assert found.status.attempts[0].training_time == rfc3339(began)
    assert found.status.timers == Timers()
    assert said(found, C.PROVISIONED) == ("True", "Running")
    assert said(found, C.TRAINING) == ("True", "Running")
    untold = look(waiting, job("quotes-t1", pod()), seconds=9)
    assert untold.status.attempts[0].training_time == rfc3339(NOW + timedelta(seconds=9))


def test_waits() -> None:
    pending = job("quotes-t1", pod(phase="Pending", scheduled=False, unscheduled_message="0/3 nodes"))
    found = look(decision(an_attempt(), counters=ONE), pending)
    assert said(found, C.PROVISIONED) == ("False", "Unschedulable")
    second = look(decision(an_attempt(2)), job("quotes-t2", pod(phase="Pending")))
    assert said(second, C.TRAINING) == ("False", "Provisioning")


def test_an_ordinary_start_changes_nothing() -> None:
    starting = look(decision(an_attempt(start_time=None), counters=ONE))
    starting = starting.condition(situation(), C.PROVISIONED, False, Reason.PROVISIONING, "Attempt 1 ...")
    ordinary, lacking = pod(phase="Pending"), pod(phase="Pending", scheduled=False, unscheduled_message="0/3")
    before = decision(an_attempt(), conditions=starting.status.conditions, timers=Timers(pending_since=rfc3339(NOW)))
    assert look(before, job("quotes-t1", ordinary)).status == before.status
    unplaced = look(before, job("quotes-t1", lacking))
    assert said(unplaced, C.PROVISIONED) == ("False", "Unschedulable")
    assert said(look(unplaced, job("quotes-t1", ordinary)), C.PROVISIONED) == ("False", "Provisioning")


def test_a_running_attempt_names_its_nodes() -> None:
    def told(*nodes: str) -> str:
        pods = [pod(name=f"p{index}", node=node) for index, node in enumerate(nodes)]
        found = look(decision(an_attempt(), counters=ONE), job("quotes-t1", *pods))
        return next(item.message for item in found.status.conditions if item.type == C.TRAINING)

    assert told("n2", "n1") == "Attempt 1 trains on n1, n2 (onDemand)."
    assert told("n1", "") == "Attempt 1 trains on n1 (onDemand)."
    assert told("") == "Attempt 1 trains on its node (onDemand)."


def test_an_end_that_the_job_does_not_know_yet_changes_nothing() -> None:
    before = running(timers=Timers(pending_since=rfc3339(NOW)))
    found = look(before, job("quotes-t1", ended_pod(12)))
    assert found.status == before.status
