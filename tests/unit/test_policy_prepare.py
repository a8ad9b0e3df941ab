"""prepare: its Job, its retries, what it found, and starting anew for a corrected spec."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import JobRecord
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.observe import Refusal
from gemmatune_operator.policies import describe, results
from gemmatune_operator.policies.changed import changed
from gemmatune_operator.policies.prepare import (
    PENDING_LOOK_SECONDS,
    RETRIES,
    YOUNG_LOOK_SECONDS,
    YOUNG_SECONDS,
    prepare,
)
from gemmatune_operator.views import JobView, PodView
from tests.support.play import PREPARED
from tests.support.situations import (
    NOW,
    attempt,
    decision,
    ended_pod,
    failed_job,
    job,
    pod,
    resource,
    said,
    situation,
)

P = ConditionType.PREPARED
ENDED = {"failed": True, "failure_target": True, "active": 0}


def accepted(record: JobRecord | None = None, **status: Any) -> Decision:
    """Accepted, not prepared."""
    found = decision(prepare=record, **status)
    return found.update(conditions=[item for item in found.status.conditions if item.type != P])


def preparing(record: JobRecord | None = None, **status: Any) -> Decision:
    """With the condition that a preparation sets."""
    found = accepted(record or JobRecord(number=1, job="quotes-p1", generation=1), **status)
    return found.condition(situation(), P, False, Reason.PREPARING, "...")


def created(found: Decision) -> list[str]:
    return [item["metadata"]["name"] for item in found.create if item["kind"] == "Job"]


def test_the_first_preparation() -> None:
    found = prepare(situation(), accepted())
    assert said(found, P) == ("False", "Preparing")
    assert found.status.prepare == JobRecord(number=1, job="quotes-p1", generation=1)
    assert [item["kind"] for item in found.create] == ["ServiceAccount", "Role", "RoleBinding", "Job"]
    assert created(found) == ["quotes-p1"]
    assert found.settled
    assert found.status.job is None, "a preparation may not write the trainer's fields"


def test_a_recorded_preparation_without_a_job_is_created() -> None:
    assert created(prepare(situation(), preparing())) == ["quotes-p1"]


def test_an_attempt_or_a_preparation_that_is_done_ends_the_matter() -> None:
    begun = decision(attempt())
    assert prepare(situation(resource(generation=9)), begun) is begun
    done = decision(prepare=JobRecord(number=1, job="quotes-p1", generation=1))
    assert prepare(situation(), done) is done


def test_an_earlier_job_blocks() -> None:
    record = JobRecord(number=2, job="quotes-p2", generation=2)
    found = prepare(situation(resource(generation=2), jobs=[job("quotes-p1", deleting=True)]), preparing(record))
    assert created(found) == []
    assert found.wake is not None


def test_its_time_has_to_come() -> None:
    later = rfc3339(NOW + timedelta(seconds=8))
    found = prepare(situation(), preparing(next_attempt_time=later))
    assert (created(found), found.wake) == ([], 8)
    assert created(prepare(situation(now=NOW + timedelta(seconds=8)), preparing(next_attempt_time=later)))


def test_a_refusal_is_told_and_tried_again() -> None:
    refusal = Refusal("quotes-p1", Reason.NAME_CONFLICT, "taken")
    found = prepare(situation(refusal=refusal), preparing())
    assert said(found, P) == ("False", "NameConflict")
    assert created(found) == []
    assert found.wake is not None


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (job("quotes-p1", pod()), "Preparing"),
        (job("quotes-p1"), "Preparing"),
        (job("quotes-p1", pod(phase="Pending")), "Preparing"),
        (job("quotes-p1", pod(phase="Pending", waiting_reason="ErrImagePull")), "ImagePullFailed"),
        (job("quotes-p1", pod(phase="Pending", scheduled=False, unscheduled_message="0/1")), "Unschedulable"),
        (job("quotes-p1", deleting=True), "Preparing"),
        (job("quotes-p1", ended_pod(12)), "Preparing"),
    ],
)
def test_while_it_runs(view: JobView, expected: str) -> None:
    found = prepare(situation(jobs=[view]), preparing())
    assert said(found, P) == ("False", expected)
    assert (found.settled, created(found)) == (True, [])


def test_an_ordinary_start_changes_nothing() -> None:
    before = preparing()
    for view in (job("quotes-p1"), job("quotes-p1", pod(phase="Pending")), job("quotes-p1", ended_pod(12))):
        assert prepare(situation(jobs=[view]), before).status == before.status
    stuck = before.condition(situation(), P, False, Reason.IMAGE_PULL_FAILED, "...")
    assert prepare(situation(jobs=[job("quotes-p1", ended_pod(12))]), stuck).status == stuck.status


def test_when_to_look_again() -> None:
    assert prepare(situation(jobs=[job("quotes-p1")]), preparing()).wake == YOUNG_LOOK_SECONDS
    old = job("quotes-p1", pod(phase="Pending"), created=NOW - timedelta(seconds=YOUNG_SECONDS))
    assert prepare(situation(jobs=[old]), preparing()).wake == PENDING_LOOK_SECONDS
    record = JobRecord(number=2, job="quotes-p2", generation=1)
    ending = job("quotes-p1", pod(deleted=NOW), deleting=True)
    assert prepare(situation(jobs=[ending]), preparing(record)).wake == 61
    assert prepare(situation(jobs=[job("quotes-p1")]), preparing(record)).wake == PENDING_LOOK_SECONDS


def test_a_wait_that_is_over_is_forgotten() -> None:
    stuck = preparing().condition(situation(), P, False, Reason.IMAGE_PULL_FAILED, "...")
    for view in (job("quotes-p1", pod()), job("quotes-p1", pod(phase="Pending"))):
        assert said(prepare(situation(jobs=[view]), stuck), P) == ("False", "Preparing")


def test_the_pending_deadline_holds_here_too() -> None:
    late = situation(now=NOW + timedelta(days=1), jobs=[job("quotes-p1", pod(phase="Pending", scheduled=False))])
    found = prepare(late, preparing())
    assert said(found, ConditionType.FAILED) == ("True", "DeadlineExceeded")


def prepared_job(message: Any) -> JobView:
    text = message if isinstance(message, str) else json.dumps(message)
    return job("quotes-p1", ended_pod(0, termination_message=text), complete=True, active=0)


def test_prepared() -> None:
    found = prepare(situation(jobs=[prepared_job(PREPARED)]), preparing())
    assert said(found, P) == ("True", "Prepared")
    assert not found.settled
    assert found.status.data is not None
    assert found.status.data.rows == 320
    assert found.status.plan is not None
    assert found.status.plan.total_steps == 100


@pytest.mark.parametrize("message", ["", "no json", {"message": "done"}, {"model": {"family": "gemma2"}}, {"data": {}}])
def test_a_result_that_cannot_be_read(message: Any) -> None:
    found = prepare(situation(jobs=[prepared_job(message)]), preparing())
    assert said(found, P) == ("False", "Retrying")
    assert found.status.prepare == JobRecord(number=2, job="quotes-p2", generation=1, retries=1)


def test_not_a_gemma() -> None:
    message = {**PREPARED, "model": {"family": "llama", "shape": {"model_type": "llama"}}}
    found = prepare(situation(resource({"model": {"uri": "gs://b/x"}}), jobs=[prepared_job(message)]), preparing())
    assert said(found, ConditionType.FAILED) == ("True", "InvalidConfig")


def test_what_prepare_found_may_not_fit() -> None:
    shape = {**PREPARED["model"]["shape"], "num_hidden_layers": 4000}  # type: ignore[dict-item]
    message = {**PREPARED, "model": {"family": "gemma2", "shape": shape}}
    raw = resource({"model": {"uri": "gs://bucket/our-own"}})
    found = prepare(situation(raw, jobs=[prepared_job(message)]), preparing(plan=None))
    assert said(found, ConditionType.ACCEPTED) == ("False", "DoesNotFit")
    assert said(found, ConditionType.FAILED) == ("True", "DoesNotFit")


def failing(code: int, record: JobRecord | None = None, **fields: Any) -> Decision:
    found = preparing(record)
    current = found.status.prepare
    assert current is not None
    return prepare(situation(jobs=[failed_job(code, current.job, **fields)]), found)


@pytest.mark.parametrize("code", [10, 11, 12, 14])
def test_fatal_at_once(code: int) -> None:
    found = failing(code)
    assert found.settled
    failed = said(found, ConditionType.FAILED)
    assert failed is not None
    assert failed[0] == "True"
    assert said(found, P) == ("False", failed[1])
    assert created(found) == []
    assert "used up" not in failure(found)


def failure(found: Decision) -> str:
    return next(item.message for item in found.status.conditions if item.type == ConditionType.FAILED)


@pytest.mark.parametrize("code", [1, 13, 20, 40, 41, 137])
def test_counted(code: int) -> None:
    found = failing(code)
    assert found.status.prepare == JobRecord(number=2, job="quotes-p2", generation=1, retries=1)
    assert said(found, P) == ("False", "Retrying")
    last = failing(code, JobRecord(number=4, job="quotes-p4", generation=1, retries=RETRIES))
    assert last.settled
    assert "used up" in failure(last)


def test_free() -> None:
    record = JobRecord(number=5, job="quotes-p5", generation=1, retries=RETRIES, preemptions=4)
    found = failing(30, record)
    assert found.status.prepare == JobRecord(number=6, job="quotes-p6", generation=1, retries=3, preemptions=5)
    disrupted = failing(12, record, disruption="EvictionByEvictionAPI")
    assert disrupted.status.prepare == found.status.prepare
    worn = failing(30, JobRecord(number=9, job="quotes-p9", generation=1, preemptions=20))
    assert said(worn, ConditionType.FAILED) == ("True", "Interrupted")


def test_backoff() -> None:
    assert created(failing(137)) == ["quotes-p2"], "at once"
    waits = failing(40)
    assert created(waits) == []
    assert waits.status.next_attempt_time is not None
    assert waits.wake is not None
    assert waits.wake > 5


# --- another generation ---


def corrected(spec: dict[str, Any], before: dict[str, Any] | None = None, **status: Any) -> Decision:
    """A prepared run whose spec is now another."""
    resolved = describe.resolved(situation(resource(before)).spec)
    raw = resource(spec, generation=2, status={"observedGeneration": 1, "resolved": resolved})
    seen = situation(raw, jobs=[job("quotes-p1", complete=True, active=0)])
    known = decision(prepare=JobRecord(number=1, job="quotes-p1", generation=1, retries=2), **status)
    return prepare(seen, changed(seen, known.update(resolved=resolved)))


def test_a_corrected_spec_is_prepared_anew() -> None:
    found = corrected({"training": {"maxSteps": 50}})
    assert found.status.prepare == JobRecord(number=2, job="quotes-p2", generation=2)
    assert created(found) == ["quotes-p2"]
    assert said(found, P) == ("False", "Preparing")
    assert found.status.data is None


@pytest.mark.parametrize("change", [{"limits": {"maxRetries": 9}}, {"suspend": False}])
def test_what_preparation_does_not_read_changes_nothing(change: dict[str, Any]) -> None:
    found = corrected(change)
    assert found.status.prepare == JobRecord(number=1, job="quotes-p1", generation=2, retries=2)
    assert (found.settled, created(found), said(found, P)) == (False, [], ("True", "Valid"))


def test_on_demand_always_prepares_anew() -> None:
    record = JobRecord(number=3, job="quotes-p3", generation=None, retries=3)
    found = prepare(situation(jobs=[job("quotes-p3", failed=True, active=0)]), accepted(record))
    assert found.status.prepare == JobRecord(number=4, job="quotes-p4", generation=1)
    assert created(found) == ["quotes-p4"]


def test_what_is_about_to_end_says_so_at_once() -> None:
    found = prepare(situation(jobs=[job("quotes-p1", pod(disruption="EvictionByEvictionAPI"))]), preparing())
    assert said(found, P) == ("False", "Retrying")
    assert "Preparation 1 is ending with Preempted: " in found.status.conditions[-1].message
    assert (found.settled, created(found), found.status.prepare.number) == (True, [], 1)  # type: ignore[union-attr]


def test_a_preparation_on_a_dead_node_is_given_up() -> None:
    stuck = job("quotes-p1", pod(deleted=NOW - timedelta(seconds=61)))
    found = prepare(situation(jobs=[stuck]), preparing())
    assert created(found) == ["quotes-p2"]
    record = found.status.prepare
    assert record is not None
    assert (record.number, record.retries, record.preemptions) == (2, 0, 1)
    assert "NodeLost" in found.status.conditions[-1].message
    assert found.status.conditions[-1].message.endswith("The next follows at once (retry 0 of 3, preemptions 1 of 20).")


@pytest.mark.parametrize(
    ("pods", "seconds", "reason", "wake"),
    [
        ([pod(started=NOW, unready=True)], 5, "Preparing", 10),
        ([pod(started=NOW, unready=True)], 15, "WaitingForAccess", None),
        ([pod(started=NOW, unready=True)], 90, "WaitingForAccess", None),
        ([pod(started=NOW)], 90, "Preparing", None),
        ([pod(unready=True)], 90, "Preparing", None),
    ],
    ids=["not asked yet", "refused", "still refused", "ready", "not started"],
)
def test_a_pod_that_is_not_ready_waits_for_access(
    pods: list[PodView], seconds: int, reason: str, wake: float | None
) -> None:
    record = JobRecord(number=1, job="quotes-p1", generation=1)
    before = decision(prepare=record, conditions=[])
    seen = situation(now=NOW + timedelta(seconds=seconds), jobs=[job("quotes-p1", *pods)])
    found = prepare(seen, before)
    assert said(found, ConditionType.PREPARED) == ("False", reason)
    assert found.wake == wake


def test_the_result_is_that_of_the_pod_that_succeeded() -> None:
    words = json.dumps(PREPARED)
    found = results.of_job(job("quotes-p1", ended_pod(1), ended_pod(0, termination_message=words), complete=True))
    assert found is not None
    assert found.data is not None
    assert results.of_job(job("quotes-p1", ended_pod(1, termination_message=words))) is None
