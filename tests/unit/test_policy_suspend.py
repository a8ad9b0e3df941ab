"""suspend: stop with a checkpoint, say so when it is true, and go on."""

from __future__ import annotations

from datetime import timedelta

from gemmatune_api.names import ConditionType
from gemmatune_api.status import Artifacts, CheckpointStatus, Counters, Timers
from gemmatune_operator import conditions
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.policies.suspend import suspend
from tests.support.situations import NOW, attempt, decision, ended_pod, job, pod, resource, said, situation

S, T = ConditionType.SUSPENDED, ConditionType.TRAINING
SUSPEND = resource({"suspend": True})


def test_nothing_to_do() -> None:
    running = decision(attempt())
    assert suspend(situation(), running) is running


def test_a_running_attempt_is_closed_and_its_job_awaited() -> None:
    began = attempt(training_time=rfc3339(NOW))
    running = decision(began, true=(T,), counters=Counters(attempts=1), timers=Timers(active_seconds=100))
    now = NOW + timedelta(seconds=50)
    found = suspend(situation(SUSPEND, now=now, jobs=[job("quotes-t1", pod())]), running)
    assert found.settled
    assert said(found, S) == ("False", "Suspending")
    assert said(found, T) == ("False", "Suspended")
    closed = found.status.attempts[0]
    assert (closed.reason, closed.counted, closed.end_time) == ("Suspended", False, rfc3339(now))
    assert found.status.timers == Timers(active_seconds=150)
    assert found.status.counters == Counters(attempts=1)


def test_an_attempt_that_has_completed_is_done_and_not_suspended() -> None:
    """The same where it completes while it stops, or is seen to have completed only when the run shall go on."""
    named = '{"message": "done", "step": 9, "manifest": "gs://bucket/quotes/manifest.json"}'
    over = job("quotes-t1", ended_pod(0, termination_message=named), complete=True, active=0)
    open_ = decision(attempt(training_time=rfc3339(NOW)), true=(T,))
    stopped = decision(attempt(end_time=rfc3339(NOW), reason="Suspended"))
    for raw, before in ((SUSPEND, open_), (SUSPEND, stopped), (resource(), stopped)):
        found = suspend(situation(raw, jobs=[over]), before)
        assert found.settled
        assert said(found, ConditionType.SUCCEEDED) == ("True", "Completed")
        assert said(found, S) is None
        assert (found.status.attempts[0].reason, found.status.attempts[0].to_step) == ("Completed", 9)
        assert found.status.attempts[0].counted in (False, None)
    untouched = suspend(situation(resource(), jobs=[over]), open_)
    assert untouched is open_, "without a suspension it is the attempt's own matter"


def test_a_merge_is_all_that_is_suspended_then() -> None:
    over = job("quotes-t1", ended_pod(0), complete=True, active=0)
    raw = resource({"suspend": True, "output": {"uri": "gs://bucket/quotes", "merge": True}})
    named = {"artifacts": Artifacts(manifest="gs://bucket/quotes/manifest.json")}
    found = suspend(situation(raw, jobs=[over]), decision(attempt(training_time=rfc3339(NOW)), true=(T,), **named))
    assert found.status.attempts[0].reason == "Completed"
    assert said(found, S) == ("True", "Suspended")
    assert message(found).endswith("goes on with the merge.")


def test_suspended_only_when_the_job_is_gone() -> None:
    closed = decision(attempt(end_time=rfc3339(NOW)))
    assert said(suspend(situation(SUSPEND, jobs=[job(deleting=True)]), closed), S) == ("False", "Suspending")
    assert said(suspend(situation(SUSPEND), closed), S) == ("True", "Suspended")


def test_a_preparation_is_stopped_too() -> None:
    found = suspend(situation(SUSPEND, jobs=[job("quotes-p1")]), decision())
    assert said(found, S) == ("False", "Suspending")


def test_an_attempt_that_never_began_stays_recorded() -> None:
    recorded = attempt(start_time=None)
    found = suspend(situation(SUSPEND), decision(recorded, next_attempt_time=rfc3339(NOW)))
    assert found.status.attempts == [recorded]
    assert found.status.next_attempt_time is None
    assert said(found, S) == ("True", "Suspended")


def test_an_attempt_that_began_is_closed_whether_seen_or_gone() -> None:
    unseen = attempt(start_time=None)
    found = suspend(situation(SUSPEND, jobs=[job()]), decision(unseen))
    assert found.status.attempts[0].start_time == rfc3339(NOW)
    assert found.status.attempts[0].reason == "Suspended", "its Job exists, though nobody has seen it yet"
    assert suspend(situation(SUSPEND), decision(attempt())).status.attempts[0].reason == "Suspended"


def test_resumed() -> None:
    suspended = suspend(situation(SUSPEND), decision(attempt(end_time=rfc3339(NOW))))
    found = suspend(situation(), decision(conditions=suspended.status.conditions))
    assert said(found, S) == ("False", "Resumed")
    assert not found.settled
    again = decision(conditions=found.status.conditions)
    assert suspend(situation(), again) is again


def message(found: Decision) -> str:
    condition = conditions.find(found.status.conditions, S)
    assert condition is not None
    return condition.message


def test_it_says_from_where_it_goes_on() -> None:
    closed = attempt(end_time=rfc3339(NOW), reason="Suspended", to_step=5)
    saved = {"checkpoint": CheckpointStatus(step=7, uri="gs://bucket/quotes/checkpoints/step-00000007")}
    assert message(suspend(situation(SUSPEND, jobs=[job(deleting=True)]), decision(closed))).startswith("The trainer")
    found = suspend(situation(SUSPEND), decision(closed, **saved))
    assert message(found).endswith("goes on from the checkpoint of step 7.")
    assert found.status.attempts[0].to_step == 7, "saved after it was asked to stop"
    assert suspend(situation(SUSPEND), decision(**saved)).status.attempts == []
    further = suspend(situation(SUSPEND), decision(closed.model_copy(update={"to_step": 9}), **saved))
    assert further.status.attempts[0].to_step == 9


def test_a_merge_goes_on_as_a_merge() -> None:
    done = decision(attempt(end_time=rfc3339(NOW), reason="Completed"))
    assert message(suspend(situation(SUSPEND, jobs=[job("quotes-m1", pod())]), done)) == "The merge stops."
    assert message(suspend(situation(SUSPEND), done)).endswith("goes on with the merge.")
