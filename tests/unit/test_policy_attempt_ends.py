"""attempt: how one ends, what is said of it, and what follows."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.status import (
    Artifacts,
    CheckpointStatus,
    Counters,
    Overrides,
    Progress,
    Timers,
)
from gemmatune_operator import conditions
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.policies.attempt import attempt
from gemmatune_operator.policies.close import training_time
from gemmatune_operator.policies.prepare import PENDING_LOOK_SECONDS
from gemmatune_operator.views import JobView
from tests.support.attempts import ONE, C, created, look, running
from tests.support.situations import (
    NOW,
    decision,
    ended_pod,
    failed_job,
    job,
    pod,
    resource,
    said,
    situation,
)
from tests.support.situations import attempt as an_attempt

# --- closed ---


def test_success_needs_a_manifest() -> None:
    message = json.dumps({"manifest": "gs://b/manifest.json", "step": 100})
    done = job("quotes-t1", ended_pod(0, termination_message=message), complete=True, active=0)
    found = look(running(), done, seconds=60)
    for kind in (C.SUCCEEDED, C.FINISHED):
        assert said(found, kind) == ("True", "Completed")
    assert said(found, C.TRAINING) == ("False", "Completed")
    closed = found.status.attempts[0]
    assert (closed.reason, closed.to_step, closed.end_time) == ("Completed", 100, rfc3339(NOW + timedelta(seconds=60)))
    by_status = running(artifacts=Artifacts(manifest="gs://b/manifest.json"))
    assert said(look(by_status, job("quotes-t1", ended_pod(0), complete=True)), C.SUCCEEDED) == ("True", "Completed")
    assert "gs://bucket/quotes/adapter" in found.status.conditions[-1].message
    elsewhere = running(artifacts=Artifacts(manifest="m", adapter="gs://b/elsewhere"))
    told = look(elsewhere, job("quotes-t1", ended_pod(0), complete=True)).status.conditions[-1].message
    assert "gs://b/elsewhere" in told
    nothing = look(running(), job("quotes-t1", ended_pod(0), complete=True, active=0))
    assert said(nothing, C.SUCCEEDED) is None
    assert nothing.status.attempts[0].reason == "ResultMissing"
    assert nothing.status.attempts[0].counted


def test_one_write_closes_and_records() -> None:
    found = look(running(progress=Progress(step=33)), failed_job(30), seconds=100)
    closed, following = found.status.attempts
    assert (closed.reason, closed.counted, closed.to_step) == ("Interrupted", False, 33)
    assert (following.number, following.job, following.start_time) == (2, "quotes-t2", None)
    assert (found.status.job, found.status.counters) == ("quotes-t2", Counters(attempts=2, preemptions=1))
    assert created(found) == ["quotes-t2"]
    assert said(found, C.TRAINING) == ("False", "Retrying")
    assert said(found, C.PROVISIONED) == ("False", "Retrying")
    assert found.status.timers == Timers(active_seconds=100)


def test_diagnosis_comes_before_the_way_is_free() -> None:
    ending = job("quotes-t1", ended_pod(20), failure_target=True, active=0, terminating=1)
    found = look(running(), ending)
    assert [item.reason for item in found.status.attempts] == ["AcceleratorOutOfMemory", ""]
    assert found.status.attempts[1].overrides == Overrides(micro_batch_size=2)
    assert created(found) == []


def test_backoff_is_a_time_in_the_status() -> None:
    found = look(running(), failed_job(40))
    assert created(found) == []
    retrying = {item.type: item.message for item in found.status.conditions}[C.TRAINING]
    assert "The next follows in " in retrying
    at_once = {item.type: item.message for item in look(running(), failed_job(30)).status.conditions}[C.TRAINING]
    assert at_once.endswith("The next follows at once.")
    assert found.status.next_attempt_time is not None
    assert found.wake is not None


def test_fatal() -> None:
    found = look(running(), failed_job(21, termination_message='{"message": "loss is nan"}'))
    assert said(found, C.FAILED) == ("True", "LossDiverged")
    assert said(found, C.FINISHED) == ("True", "LossDiverged")
    assert said(found, C.TRAINING) == ("False", "LossDiverged")
    assert len(found.status.attempts) == 1
    assert found.settled


def test_a_missing_job_has_vanished() -> None:
    found = look(running())
    assert (found.status.attempts[0].reason, found.status.attempts[0].counted) == ("JobVanished", True)
    assert created(found) == ["quotes-t2"]


def test_what_never_trained_has_no_training_time() -> None:
    vanished = look(decision(an_attempt(), counters=ONE), seconds=30)
    assert vanished.status.attempts[0].training_time is None
    assert vanished.status.timers == Timers()
    quick = failed_job(1, started=NOW + timedelta(seconds=2), finished=NOW + timedelta(seconds=12))
    missed = look(decision(an_attempt(), counters=ONE), quick, seconds=30)
    assert missed.status.attempts[0].training_time == rfc3339(NOW + timedelta(seconds=2))
    assert missed.status.timers == Timers(active_seconds=10)
    two = failed_job(1, started=NOW)
    pair = look(decision(an_attempt(), counters=ONE), JobView(**{**_fields(two), "wanted": 2}), seconds=30)
    assert pair.status.attempts[0].training_time is None, "not all of its pods ran"


def test_an_attempt_keeps_its_start() -> None:
    early = look(running(), failed_job(30), seconds=30)
    assert early.status.attempts[0].start_time == rfc3339(NOW)
    unseen = look(decision(an_attempt(start_time=None), counters=ONE), failed_job(30), seconds=30)
    assert unseen.status.attempts[0].start_time == rfc3339(NOW), "when its Job was made"


def _fields(view: JobView) -> dict[str, Any]:
    return {item.name: getattr(view, item.name) for item in dataclasses.fields(view)}


def test_a_lost_node() -> None:
    stuck = job("quotes-t1", pod(deleted=NOW - timedelta(seconds=61)))
    found = look(running(), stuck)
    assert found.status.attempts[0].reason == "NodeLost"
    assert created(found) == ["quotes-t2"], "the fence covers what may still run there"
    soon = look(running(), job("quotes-t1", pod(deleted=NOW)))
    assert len(soon.status.attempts) == 1
    assert soon.wake == 61


def test_what_is_about_to_end_says_so_at_once() -> None:
    """DisruptionTarget comes up to minutes before the pod's end: the run is Retrying, the attempt stays open."""
    disrupted = job("quotes-t1", pod(disruption="DeletionByTaintManager", deleted=NOW))
    found = look(running(), disrupted)
    (open_one,) = found.status.attempts
    assert (open_one.reason, open_one.end_time, open_one.counted) == ("NodeLost", None, None)
    assert said(found, C.TRAINING) == said(found, C.PROVISIONED) == ("False", "Retrying")
    assert "Attempt 1 is ending with NodeLost: " in found.status.conditions[-1].message
    assert found.wake == 61
    assert found.counters == ONE
    assert created(found) == []
    assert look(found, disrupted).status == found.status, "said once"


def test_what_was_to_end_and_did_not() -> None:
    ending = look(running(), job("quotes-t1", pod(disruption="EvictionByEvictionAPI")))
    found = look(ending, job("quotes-t1", pod()))
    assert said(found, C.TRAINING) == ("True", "Running")
    assert (found.status.attempts[0].reason, found.status.attempts[0].message) == ("", "")


def test_a_cause_that_was_seen_survives_its_pod() -> None:
    """The Job's message says less than the pod did; where the Job knows more, that counts."""
    ending = look(running(), job("quotes-t1", pod(disruption="DeletionByPodGC", deleted=NOW)))
    message = "Pod ns/quotes-t1-abcde has condition DisruptionTarget matching FailJob rule at index 0"
    over: dict[str, Any] = {"failed": True, "active": 0, "failure_message": message}
    found = look(ending, job("quotes-t1", **over))
    assert found.status.attempts[0].reason == "NodeLost"
    assert "DeletionByPodGC" in found.status.attempts[0].message
    assert look(running(), job("quotes-t1", **over)).status.attempts[0].reason == "Preempted"
    code = {**over, "failure_message": "Container trainer failed with exit code 12 matching FailJob rule at index 1"}
    assert look(ending, job("quotes-t1", **code)).status.attempts[0].reason == "DataInvalid"


def test_budgets_stand_in_condition_and_attempt() -> None:
    found = look(running(), failed_job(137))
    assert found.status.attempts[0].message.endswith("(retry 1 of 3, preemptions 0 of 20).")
    assert "(retry 1 of 3, preemptions 0 of 20)" in training_message(found)
    last = look(running(counters=Counters(attempts=4, retries=3)), failed_job(137))
    assert last.status.attempts[0].message.endswith("(retry 3 of 3, preemptions 0 of 20).")
    assert "limits.maxRetries (3) is used up (retry 3 of 3, preemptions 0 of 20)." in training_message(last)
    # What is tried again by itself asks nobody for the annotation; a run that has ended does.
    assert names.ANNOTATION_RETRY not in found.status.attempts[0].remedy
    assert names.ANNOTATION_RETRY in last.status.attempts[0].remedy
    fatal = look(running(), failed_job(12))
    assert "retry" not in fatal.status.attempts[0].message


def training_message(found: Decision) -> str:
    condition = conditions.find(found.status.conditions, C.TRAINING)
    assert condition is not None
    return condition.message


def test_waits_say_what_may_still_be_changed() -> None:
    image = pod(phase="Pending", waiting_reason="ErrImagePull", waiting_message="401")
    waits = running(attempt={"training_time": None})
    found = look(waits, job("quotes-t1", image))
    assert said(found, C.PROVISIONED) == ("False", "ImagePullFailed")
    assert "suspend" in found.remedies[C.PROVISIONED]


def test_a_job_that_is_being_deleted_is_awaited() -> None:
    found = look(running(), job("quotes-t1", pod(deleted=NOW), deleting=True))
    assert len(found.status.attempts) == 1
    assert found.wake == 61
    assert look(running(), job("quotes-t1", deleting=True)).wake == PENDING_LOOK_SECONDS


def test_timers_end_attempts() -> None:
    raw = resource({"limits": {"deadline": "10m"}})
    late = situation(raw, now=NOW + timedelta(minutes=10), jobs=[job("quotes-t1", pod())])
    found = attempt(late, running())
    assert said(found, C.FAILED) is None, "the trainer saves a checkpoint first"
    assert (found.status.attempts[0].reason, found.status.attempts[0].end_time) == ("DeadlineExceeded", None)
    still = situation(now=NOW + timedelta(minutes=45), jobs=[job("quotes-t1", pod())], still_since=NOW)
    stalled = attempt(still, running())
    assert stalled.status.attempts[0].reason == "Stalled"
    assert stalled.status.counters == Counters(attempts=2, retries=1, stalls=1)
    assert created(stalled) == [], "the stalled Job is deleted first"
    raw = resource({"limits": {"pendingDeadline": "5m"}})
    pending = situation(raw, now=NOW + timedelta(minutes=5), jobs=[job("quotes-t1", pod(phase="Pending"))])
    waited = attempt(pending, decision(an_attempt(), timers=Timers(pending_since=rfc3339(NOW))))
    assert said(waited, C.FAILED) == ("True", "DeadlineExceeded")


def test_the_earliest_timer_wakes() -> None:
    raw = resource({"limits": {"deadline": "2m"}})
    seen = situation(raw, now=NOW + timedelta(minutes=1), jobs=[job("quotes-t1", pod())], still_since=NOW)
    assert attempt(seen, running()).wake == 60


STOPPED = {"reason": "DeadlineExceeded", "message": "Long enough.", "remedy": "Raise it."}


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([job("quotes-t1", pod(deleted=NOW), deleting=True)], None),
        ([job("quotes-t1", pod())], None),
        ([job("quotes-t1", pod(deleted=NOW - timedelta(seconds=61)), deleting=True)], "DeadlineExceeded"),
        ([failed_job(30)], "DeadlineExceeded"),
        ([failed_job(21)], "DeadlineExceeded"),
        ([], "DeadlineExceeded"),
        ([job("quotes-t1", ended_pod(0), complete=True)], "Completed"),
    ],
    ids=["its pod ends", "not deleted yet", "its node is lost", "ended", "ended badly", "gone", "succeeded after all"],
)
def test_an_attempt_that_was_asked_to_stop(jobs: list[JobView], expected: str | None) -> None:
    saved = CheckpointStatus(step=43, uri="gs://b/c")
    artifacts = Artifacts(manifest="gs://b/m") if expected == "Completed" else None
    stopping = running(attempt=STOPPED, checkpoint=saved, artifacts=artifacts)
    found = look(stopping, *jobs)
    (only,) = found.status.attempts
    assert (only.reason if only.end_time else None) == expected
    if expected == "DeadlineExceeded":
        assert said(found, C.FAILED) == ("True", expected)
        assert only.message == "Long enough. The checkpoint of step 43 is saved."
        assert only.remedy.startswith("Raise it.")
    elif expected is None:
        assert found.wake is not None
        assert (said(found, C.FAILED), created(found)) == (None, [])


def test_a_limit_that_is_used_up_lets_no_attempt_start() -> None:
    raw = resource({"limits": {"deadline": "10m"}})
    for closed in (decision(), decision(an_attempt(start_time=None))):
        found = attempt(situation(raw), closed.update(timers=Timers(active_seconds=600)))
        assert said(found, C.FAILED) == ("True", "DeadlineExceeded")
        assert created(found) == []
        assert created(attempt(situation(raw), closed.update(timers=Timers(active_seconds=599)))) == ["quotes-t1"]


def test_the_step_to_resume_from_is_read_when_the_job_is_made() -> None:
    recorded = an_attempt(2, start_time=None, from_step=40)
    found = look(decision(recorded, counters=Counters(attempts=2), checkpoint=CheckpointStatus(step=43, uri="gs://b")))
    assert found.status.attempts[0].from_step == 43


def test_what_it_cost() -> None:
    found = look(running(attempt={"cost_per_hour": 3.6}), failed_job(30), seconds=1000)
    assert found.status.timers is not None
    assert found.status.timers.spent == 1.0
    free = look(running(), failed_job(30)).status.timers
    assert free is not None
    assert free.spent == 0


def test_of_several_pods_the_one_that_stays_is_named() -> None:
    gone = pod(name="stays", deleted=NOW - timedelta(minutes=5))
    found = look(running(), job("quotes-t1", ended_pod(1), gone, wanted=2))
    assert found.status.attempts[0].reason == "NodeLost"
    assert "stays" in found.status.attempts[0].message


def test_training_begins_when_all_pods_run() -> None:
    began = [pod(started=NOW), pod(name="b", started=NOW + timedelta(seconds=9)), pod(name="c")]
    current = an_attempt()
    assert training_time(current, job("quotes-t1", *began, wanted=2)) == NOW + timedelta(seconds=9)
    assert training_time(current, job("quotes-t1", *began, wanted=3)) is None
