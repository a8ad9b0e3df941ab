"""merge: recorded once an attempt has left the adapter, its Job, its retries, and the run's end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Artifacts, JobRecord, PlanMerge
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.diagnose import ANSWERS, Answer, cause
from gemmatune_operator.observe import Refusal, open_merge, trained
from gemmatune_operator.policies import remedies
from gemmatune_operator.policies.finish import phase_of
from gemmatune_operator.policies.merge import given_up, merge
from gemmatune_operator.policies.prepare import RETRIES
from gemmatune_operator.views import JobView, Machine
from tests.support.situations import (
    GIB,
    NOW,
    attempt,
    decision,
    ended_pod,
    failed_job,
    job,
    plan,
    pod,
    resource,
    said,
    situation,
)

C = ConditionType
S, P = C.SUCCEEDED, C.PROVISIONED
MERGED = "gs://bucket/quotes/merged"
ASKED = resource({"output": {"uri": "gs://bucket/quotes", "merge": True}})
NEEDS = PlanMerge(memory=8 * GIB, disk=20 * GIB)
DONE = attempt(end_time=rfc3339(NOW), reason="Completed")


def after_training(record: JobRecord | None = None, **status: Any) -> Decision:
    """Trained; with a record, merging."""
    found = decision(DONE, merge=record, plan=plan(merge=NEEDS), **status)
    return found if record is None else found.condition(situation(ASKED), S, False, Reason.MERGING, "...")


def merging(**fields: Any) -> Decision:
    """A first merge whose Job was seen, unless the fields say otherwise."""
    return after_training(JobRecord(**{"number": 1, "job": "quotes-m1", "start_time": rfc3339(NOW), **fields}))


def looked(found: Decision, *jobs: JobView, **fields: Any) -> Decision:
    return merge(situation(ASKED, jobs=jobs, **fields), found)


def created(found: Decision) -> list[str]:
    return [item["metadata"]["name"] for item in found.create if item["kind"] == "Job"]


def record(found: Decision) -> JobRecord:
    assert found.status.merge is not None
    return found.status.merge


def completed(message: str = "") -> JobView:
    return job("quotes-m1", ended_pod(0, termination_message=message), complete=True, active=0)


@pytest.mark.parametrize(
    "last", [attempt(), attempt(end_time=rfc3339(NOW), reason="Interrupted"), attempt(reason="Completed")]
)
def test_before_an_attempt_has_left_the_adapter_it_has_no_say(last: Any) -> None:
    found = decision(last)
    assert not trained(found.status)
    assert merge(situation(ASKED), found) is found
    nothing = decision()
    assert merge(situation(ASKED), nothing) is nothing


def test_it_is_recorded_and_its_job_created() -> None:
    found = looked(after_training())
    assert record(found) == JobRecord(number=1, job="quotes-m1")
    assert found.status.job == "quotes-m1"
    assert said(found, S) == ("False", "Merging")
    assert [item["kind"] for item in found.create] == ["ServiceAccount", "Role", "RoleBinding", "Job"]
    assert created(found) == ["quotes-m1"]
    assert found.settled
    assert open_merge(found.status) == record(found)
    assert phase_of(found.status.conditions)[0] == "Merging"


def test_a_recorded_merge_without_a_job_is_created() -> None:
    assert created(looked(merging(start_time=None))) == ["quotes-m1"]


def test_its_time_has_to_come_and_no_other_job_may_run() -> None:
    found = merging(start_time=None).update(next_attempt_time=rfc3339(NOW + timedelta(seconds=9)))
    waits = looked(found)
    assert (created(waits), waits.wake) == ([], 9)
    assert created(looked(found, now=NOW + timedelta(seconds=9)))
    blocked = looked(merging(number=2, job="quotes-m2", start_time=None), job("quotes-m1", pod(), deleting=True))
    assert created(blocked) == []
    assert blocked.wake is not None


def test_a_refusal_is_told_and_tried_again() -> None:
    refusal = Refusal("quotes-m1", Reason.NAME_CONFLICT, "taken")
    found = looked(merging(start_time=None), refusal=refusal)
    assert said(found, P) == ("False", "NameConflict")
    assert said(found, S) == ("False", "Merging"), "the phase stays"
    assert (created(found), found.wake is not None) == ([], True)


def test_what_is_created_is_what_was_granted() -> None:
    more = {"overrides": {"memory": 64 * GIB}}
    found = looked(merging(start_time=None, **more))
    (made,) = [item for item in found.create if item["kind"] == "Job"]
    limits = made["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["memory"] == "64Gi"


def test_a_run_without_a_plan_for_it_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="before it was planned"):
        looked(decision(DONE))


def test_its_job_is_seen() -> None:
    created_at = NOW - timedelta(seconds=5)
    found = looked(merging(start_time=None), job("quotes-m1", pod(), created=created_at))
    assert record(found).start_time == rfc3339(created_at)
    assert said(found, P) == ("True", "Running")
    assert looked(found, job("quotes-m1", pod(), created=created_at)).status == found.status, "no write without news"


def test_success_needs_somebody_who_names_the_weights() -> None:
    silent = looked(merging(), completed())
    assert (record(silent).number, record(silent).retries) == (2, 1)
    assert "ResultMissing" in next(item.message for item in silent.status.conditions if item.type == S)
    told = looked(merging(), completed('{"message": "NLL 3.", "manifest": "gs://bucket/quotes/merged/manifest.json"}'))
    assert said(told, S) == ("True", "Completed")
    assert said(told, C.FINISHED) == ("True", "Completed")
    message = next(item.message for item in told.status.conditions if item.type == S)
    assert message.endswith(f"{MERGED}. NLL 3.")
    written = merging().update(artifacts=Artifacts(merged=MERGED))
    assert said(looked(written, completed()), S) == ("True", "Completed")


@pytest.mark.parametrize(
    ("code", "fields", "retries", "preemptions"),
    [
        (30, {}, 0, 1),
        (1, {"disruption": "EvictionByEvictionAPI"}, 0, 1),
        (1, {}, 1, 0),
        (20, {}, 1, 0),  # there is nothing to shift down to on a CPU
        (13, {}, 1, 0),
        (137, {"termination_reason": "OOMKilled"}, 1, 0),
    ],
)
def test_what_is_free_and_what_counts(code: int, fields: Any, retries: int, preemptions: int) -> None:
    found = looked(merging(), failed_job(code, "quotes-m1", **fields))
    assert (record(found).retries, record(found).preemptions) == (retries, preemptions)
    assert (record(found).number, record(found).job, record(found).start_time) == (2, "quotes-m2", None)
    assert found.status.job == "quotes-m2"
    assert found.status.counters is None, "the run's own budgets are not touched"


def test_storage_and_crashes_back_off() -> None:
    crashed = looked(merging(), failed_job(1, "quotes-m1"))
    assert crashed.status.next_attempt_time is not None
    assert created(crashed) == []
    interrupted = looked(merging(), failed_job(30, "quotes-m1"))
    assert interrupted.status.next_attempt_time is None
    assert created(interrupted) == ["quotes-m2"]


def test_budgets_end() -> None:
    for fields, code in (({"retries": RETRIES}, 1), ({"preemptions": 20}, 30)):
        found = looked(merging(**fields), failed_job(code, "quotes-m1"))
        assert said(found, C.FAILED) == ("True", "MergeFailed")
        assert said(found, S) == ("False", "MergeFailed")
        assert "Its retries are used up" in next(i.message for i in found.status.conditions if i.type == S)
        assert "only the merge is tried again" in found.remedies[C.FAILED]
    assert said(looked(merging(retries=RETRIES - 1), failed_job(1, "quotes-m1")), C.FAILED) is None


def test_what_no_retry_helps_fails_at_once() -> None:
    found = looked(merging(), failed_job(12, "quotes-m1", termination_message='{"message": "cut", "remedy": "Mend."}'))
    assert said(found, C.FAILED) == ("True", "MergeFailed")
    assert found.remedies[C.FAILED].startswith("Mend. Then set the annotation")


def test_memory_grows_with_what_the_machine_has() -> None:
    view = failed_job(137, "quotes-m1", termination_reason="OOMKilled")
    view = replace(view, memory=10 * GIB)
    found = looked(merging(), view, machines={"n1": Machine(memory=100 * GIB)})
    grown = record(found).overrides
    assert grown is not None
    assert grown.memory == 15 * GIB


def test_a_job_that_somebody_deleted() -> None:
    found = looked(merging())
    assert (record(found).number, record(found).retries) == (2, 1)
    leaving = looked(merging(), job("quotes-m1", pod(), deleting=True))
    assert record(leaving).number == 1
    assert said(leaving, P) == ("False", "Retrying")
    assert leaving.wake is not None


def test_a_pod_on_a_lost_node_does_not_block() -> None:
    gone = pod(deleted=NOW - timedelta(minutes=5))
    found = looked(merging(), job("quotes-m1", gone, deleting=True))
    assert (record(found).number, record(found).preemptions) == (2, 1)


def test_the_wait_for_its_pod_ends_too() -> None:
    waits = job("quotes-m1", pod(phase="Pending", scheduled=False, unscheduled_message="0/1", node=""))
    found = looked(merging(), waits)
    assert said(found, P) == ("False", "Unschedulable")
    assert said(found, S) == ("False", "Merging")
    late = looked(merging(), waits, now=NOW + timedelta(hours=24, seconds=1))
    assert said(late, C.FAILED) == ("True", "MergeFailed")
    assert late.remedies[C.FAILED].startswith("Add CPU nodes with the memory and disk of status.plan.merge. Then set")


ELSEWHERE = (Reason.ACCELERATOR_OUT_OF_MEMORY, Reason.LOSS_DIVERGED, Reason.DEADLINE_EXCEEDED, Reason.BUDGET_EXCEEDED)
"""Causes that end no merge, and the limit whose remedy the wait gives."""
REASONS = [reason for reason, answer in ANSWERS.items() if answer is not Answer.SUCCEED and reason not in ELSEWHERE]


@pytest.mark.parametrize("reason", REASONS)
def test_remedies_speak_of_what_a_merge_needs(reason: Reason) -> None:
    for remedy in (remedies.merge_underway(cause(reason)), remedies.merge_failed(cause(reason))):
        assert not any(word in remedy for word in ("accelerator", "provisioning", "pod.resources", "checkpoint")), (
            remedy
        )
        assert remedy.count("Then set") <= 1


def test_an_end_that_the_job_does_not_know_yet_changes_nothing() -> None:
    before = merging()
    assert looked(before, job("quotes-m1", ended_pod(1))).status == before.status


def test_no_heartbeat_for_the_time_that_a_first_step_has() -> None:
    running = job("quotes-m1", pod(started=NOW))
    early = looked(merging(), running, still_since=NOW, now=NOW + timedelta(minutes=44))
    assert record(early).number == 1
    assert early.wake == 60
    stalled = looked(merging(), running, still_since=NOW, now=NOW + timedelta(minutes=45))
    assert (record(stalled).number, record(stalled).retries) == (2, 1)
    assert looked(merging(), running).wake is None


def test_a_suspension_gives_up_what_has_begun() -> None:
    assert record(given_up(situation(ASKED), merging())).number == 2
    seen = situation(ASKED, jobs=[job("quotes-m1")])
    assert record(given_up(seen, merging(start_time=None))).number == 2
    unseen = merging(start_time=None)
    assert given_up(situation(ASKED), unseen) is unseen
    assert given_up(situation(ASKED), after_training()).status.merge is None


def message(found: Decision, kind: ConditionType) -> str:
    return next(item.message for item in found.status.conditions if item.type == kind)


def test_an_ordinary_wait_says_no_more_than_that() -> None:
    starts = job("quotes-m1", pod(phase="Pending", scheduled=True))
    assert message(looked(merging(), starts), P) == "Merge 1 waits for its node."
    waits = job("quotes-m1", pod(phase="Pending", scheduled=False, unscheduled_message="0/1", node=""))
    assert "0/1" in message(looked(merging(), waits), P)


def test_the_next_says_when_it_follows() -> None:
    assert "The next follows in " in message(looked(merging(), failed_job(1, "quotes-m1")), S)
    assert "The next follows at once" in message(looked(merging(), failed_job(30, "quotes-m1")), S)


def test_of_several_pods_one_may_not_have_begun() -> None:
    both = job("quotes-m1", pod(started=NOW), pod(name="other", uid="other"))
    stalled = looked(merging(), both, still_since=NOW, now=NOW + timedelta(minutes=45))
    assert record(stalled).number == 2


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (Reason.PROVISIONING, ""),
        (Reason.INTERRUPTED, "Nothing: the next merge begins anew."),
        (Reason.HOST_OUT_OF_MEMORY, "Nothing at first: the next merge gets more, "),
        (Reason.DISK_FULL, "Nothing at first: the next merge gets more, "),
        (Reason.UNSCHEDULABLE, "Add CPU nodes with the memory and disk of status.plan.merge."),
    ],
)
def test_the_remedy_while_it_goes_on(reason: Reason, remedy: str) -> None:
    found = remedies.merge_underway(cause(reason))
    assert found.startswith(remedy)
    assert bool(found) == bool(remedy)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (Reason.PREEMPTED, "Raise limits.maxPreemptions. Then "),
        (Reason.POD_LOST, "Look at the events of the node that ran the pod. Then "),
        (Reason.KILLED, "Add CPU nodes with more memory: status.plan.merge tells what the merge needs. Then "),
        (Reason.OUTPUT_IN_USE, "Create a new resource with another output.uri."),
    ],
)
def test_the_remedy_when_it_failed(reason: Reason, remedy: str) -> None:
    assert remedies.merge_failed(cause(reason)).startswith(remedy)
    told = cause(reason, said=TerminationMessage(message="so", remedy="Do as I say."))
    assert remedies.merge_failed(told).startswith("Do as I say." if reason is not Reason.OUTPUT_IN_USE else remedy)
