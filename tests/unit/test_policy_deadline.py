"""deadline: training time over all attempts, and the wait of one attempt."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gemmatune_api.names import ANNOTATION_RETRY, Reason
from gemmatune_api.status import Timers
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.diagnose import cause
from gemmatune_operator.policies.deadline import backstop, pending, training, used_up
from tests.support.situations import NOW, attempt, decision, ended_pod, job, pod, resource, situation

LIMITED = {"limits": {"deadline": "1h", "pendingDeadline": "30m"}}


@pytest.mark.parametrize(
    ("before", "now", "ends"),
    [(0, 3599, False), (0, 3600, True), (3000, 599, False), (3000, 600, True), (4000, 0, True)],
)
def test_training_time_is_summed(before: float, now: int, ends: bool) -> None:
    seen = situation(resource(LIMITED), now=NOW + timedelta(seconds=now))
    current = attempt(training_time=rfc3339(NOW))
    found = training(seen, decision(timers=Timers(active_seconds=before)), current, job())
    assert (found.cause is not None) == ends
    if found.cause is not None:
        assert found.cause.reason is Reason.DEADLINE_EXCEEDED
        assert "1h" in found.cause.message
        assert ANNOTATION_RETRY in found.cause.remedy
    else:
        assert found.wake == 3600 - before - now


JOB_OVER = cause(Reason.DEADLINE_EXCEEDED, "the Job's")


@pytest.mark.parametrize(
    ("limit", "before", "trained", "reason"),
    [
        ("1h", 0, 3600, Reason.DEADLINE_EXCEEDED),
        ("1h", 3000, 600, Reason.DEADLINE_EXCEEDED),
        ("1h", 3000, 599, Reason.INTERRUPTED),
        (None, 3000, 86400, Reason.INTERRUPTED),
    ],
)
def test_the_backstop_ends_only_a_run_that_is_over(
    limit: str | None, before: float, trained: int, reason: Reason
) -> None:
    """A Job keeps the activeDeadlineSeconds that it was made with: a deadline raised since makes a free attempt."""
    seen = situation(resource({"limits": {"deadline": limit}} if limit else None), now=NOW + timedelta(days=1))
    over = job("quotes-t1", ended_pod(30, started=NOW, finished=NOW + timedelta(seconds=trained)), failed=True)
    recorded = attempt(training_time=rfc3339(NOW))
    for current in (recorded, attempt()):
        found = backstop(seen, decision(timers=Timers(active_seconds=before)), current, over, JOB_OVER)
        assert found.reason is reason
    other = cause(Reason.KILLED)
    assert backstop(seen, decision(), recorded, over, other) is other


def test_a_job_that_never_ran_is_over_with_its_backstop() -> None:
    waited = job("quotes-t1", failed=True)
    assert backstop(situation(resource(LIMITED)), decision(), attempt(), waited, JOB_OVER) is JOB_OVER


def test_waiting_does_not_count() -> None:
    late = situation(resource(LIMITED), now=NOW + timedelta(days=9))
    assert training(late, decision(), attempt(), job()).cause is None


def test_no_deadline_by_default() -> None:
    late = situation(now=NOW + timedelta(days=9))
    assert training(late, decision(), attempt(training_time=rfc3339(NOW)), job()).cause is None


@pytest.mark.parametrize(("waited", "ends"), [(1799, False), (1800, True)])
def test_pending_deadline(waited: int, ends: bool) -> None:
    seen = situation(resource(LIMITED), now=NOW + timedelta(seconds=waited))
    waits = job("quotes-t1", pod(phase="Pending", scheduled=False, unscheduled_message="0/3 nodes"))
    found = pending(seen, waits, NOW)
    assert (found.cause is not None) == ends
    if found.cause is not None:
        assert found.cause.reason is Reason.DEADLINE_EXCEEDED
        assert "Unschedulable: 0/3 nodes" in found.cause.message
        assert ANNOTATION_RETRY in found.cause.remedy
    else:
        assert found.wake == 1


def test_a_running_attempt_does_not_wait() -> None:
    late = situation(resource(LIMITED), now=NOW + timedelta(days=9))
    assert pending(late, job("quotes-t1", pod()), NOW).cause is None
    assert pending(late, job(), None).cause is None


def test_pending_deadline_is_a_day_by_default() -> None:
    assert pending(situation(now=NOW + timedelta(hours=23, minutes=59)), job(), NOW).cause is None
    assert pending(situation(now=NOW + timedelta(hours=24)), job(), NOW).cause is not None


@pytest.mark.parametrize(("trained", "ends"), [(3599, False), (3600, True), (4000, True)])
def test_no_attempt_starts_once_it_is_used_up(trained: float, ends: bool) -> None:
    found = used_up(situation(resource(LIMITED)), decision(timers=Timers(active_seconds=trained)))
    assert (found is not None) == ends
    if found is not None:
        assert (found.reason, "1h" in found.message) == (Reason.DEADLINE_EXCEEDED, True)
    assert used_up(situation(), decision(timers=Timers(active_seconds=10**7))) is None
