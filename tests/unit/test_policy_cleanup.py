"""cleanup: what nobody wants any more is deleted, and what may still run blocks the next Job."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import JobRecord
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Deletion
from gemmatune_operator.policies.cleanup import OVERDUE_SECONDS, cleanup, end_of, in_the_way, seconds_to_stuck
from gemmatune_operator.views import JobView
from tests.support.situations import NOW, attempt, decision, ended_pod, job, pod, situation

T1 = Deletion("Job", "quotes-t1", "uid-quotes-t1")


def test_the_open_attempt_and_the_running_preparation_are_wanted() -> None:
    assert cleanup(situation(jobs=[job()]), decision(attempt())).delete == ()
    preparing = decision(prepare=JobRecord(number=1, job="quotes-p1", generation=1), conditions=[])
    assert cleanup(situation(jobs=[job("quotes-p1")]), preparing).delete == ()


def test_what_nobody_wants_is_deleted() -> None:
    closed = attempt(end_time=rfc3339(NOW))
    assert cleanup(situation(jobs=[job()]), decision(closed)).delete == (T1,)
    assert cleanup(situation(jobs=[job()]), decision(attempt(), true=(ConditionType.FINISHED,))).delete == (T1,)
    assert cleanup(situation(jobs=[job()]), decision(attempt(), true=(ConditionType.SUSPENDED,))).delete == (T1,)
    suspending = decision(prepare=JobRecord(number=1, job="quotes-t1"), conditions=[])
    suspending = suspending.condition(situation(), ConditionType.SUSPENDED, False, Reason.SUSPENDING, "")
    assert cleanup(situation(jobs=[job()]), suspending).delete == (T1,)
    resumed = suspending.condition(situation(), ConditionType.SUSPENDED, False, Reason.RESUMED, "")
    assert cleanup(situation(jobs=[job()]), resumed).delete == ()
    corrected = decision(prepare=JobRecord(number=2, job="quotes-p2", generation=2), conditions=[])
    found = cleanup(situation(jobs=[job("quotes-p1"), job("quotes-p2")]), corrected)
    assert [item.name for item in found.delete] == ["quotes-p1"]


@pytest.mark.parametrize(
    "view",
    [
        job(deleting=True),
        job(complete=True),
        job(failed=True),
        job(failure_target=True),
        job(owner_uid="somebody-else"),
    ],
)
def test_what_ends_or_is_not_ours_is_left(view: JobView) -> None:
    assert cleanup(situation(jobs=[view]), decision(attempt(end_time=rfc3339(NOW)))).delete == ()


def test_pods_that_outlived_their_job() -> None:
    lost = (pod(job="quotes-t1"), pod(job="quotes-t1", uid="b", deleted=NOW), ended_pod(0, uid="c", job="quotes-t1"))
    assert cleanup(situation(lost_pods=lost), decision(attempt())).delete == ()
    found = cleanup(situation(lost_pods=lost), decision(attempt(2)))
    assert found.delete == (Deletion("Pod", "quotes-t1-abcde", "uid-pod"),)


LATE = NOW - timedelta(seconds=OVERDUE_SECONDS + 1)


@pytest.mark.parametrize(
    ("view", "blocks"),
    [
        (job("quotes-t1", pod()), True),
        (job(), True),
        (job(deleting=True), True),
        (job(failure_target=True), True),
        (job(active=0), True),
        (job(failed=True, active=0), False),
        (job(complete=True, active=0), False),
        (job(failed=True, active=0, terminating=1), True),
        (job(failed=True, active=1), True),
        (job("quotes-t1", pod(deleted=NOW), deleting=True), True),
        (job("quotes-t1", pod(deleted=LATE), deleting=True), False),
        (job("quotes-t1", pod(deleted=LATE)), False),
        (job("quotes-t1", pod(deleted=LATE), pod(uid="b")), True),
        (job("quotes-t1", pod(deleted=LATE), ended_pod(1, uid="b")), False),
    ],
)
def test_what_blocks_the_next_job(view: JobView, blocks: bool) -> None:
    seen = situation(jobs=[view])
    assert in_the_way(seen) == blocks
    assert not in_the_way(seen, keep=view.name)


def test_pods_without_a_job_block_too() -> None:
    assert in_the_way(situation(lost_pods=(pod(job="x"),)))
    assert not in_the_way(situation(lost_pods=(pod(job="x"),)), keep="x")
    assert not in_the_way(situation(lost_pods=(ended_pod(1, job="x"),)))
    assert not in_the_way(situation(lost_pods=(pod(job="x", deleted=LATE),)))


def test_when_to_look_again() -> None:
    assert seconds_to_stuck(situation(jobs=[job("quotes-t1", pod())])) is None
    ending = pod(deleted=NOW + timedelta(seconds=30))
    assert seconds_to_stuck(situation(jobs=[job("quotes-t1", ending)])) == 30 + OVERDUE_SECONDS + 1
    assert seconds_to_stuck(situation(lost_pods=(pod(deleted=LATE),))) == 1
    assert seconds_to_stuck(situation(lost_pods=(ended_pod(0, deleted=LATE),))) is None


def test_a_job_is_given_up_for_the_pod_that_stays() -> None:
    """Of several pods one has ended; the cause names the other, whose node does not answer."""
    gone = pod(name="stays", deleted=NOW - timedelta(seconds=OVERDUE_SECONDS + 1))
    seen = situation(jobs=[job("quotes-t1", ended_pod(1), gone)])
    found = end_of(seen, seen.observed.jobs["quotes-t1"])
    assert found is not None
    assert (found.reason, "stays" in found.message) == (Reason.NODE_LOST, True)
    assert end_of(seen, job("quotes-t1", pod())) is None
