"""complete: success with a manifest, also of an attempt that was to stop."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Artifacts, Attempt, Progress
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.diagnose import cause
from gemmatune_operator.policies.complete import completion, late, succeeded, verified
from gemmatune_operator.views import JobView
from tests.support.situations import NOW, attempt, decision, ended_pod, failed_job, job, pod, resource, said, situation

NAMED = '{"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}'
MANIFEST = Artifacts(manifest="gs://bucket/quotes/manifest.json", adapter="gs://bucket/quotes/adapter")


def complete(message: str = "") -> JobView:
    return job("quotes-t1", ended_pod(0, termination_message=message), complete=True, active=0)


def test_success_needs_a_manifest() -> None:
    done = cause(Reason.COMPLETED)
    assert verified(decision(), done).reason is Reason.RESULT_MISSING
    assert verified(decision(artifacts=Artifacts()), done).reason is Reason.RESULT_MISSING
    assert verified(decision(artifacts=MANIFEST), done) is done
    killed = cause(Reason.KILLED)
    assert verified(decision(artifacts=MANIFEST), killed) is killed


@pytest.mark.parametrize(
    ("view", "artifacts", "found"),
    [
        (complete(NAMED), None, True),
        (complete(), MANIFEST, True),
        (complete(), None, False),
        (failed_job(30), MANIFEST, True),  # deleted when all was done
        (job("quotes-t1", ended_pod(0, termination_message=NAMED), deleting=True), None, True),
        (job("quotes-t1", ended_pod(0, termination_message="{}"), deleting=True), None, False),
        (job("quotes-t1", pod(termination_message=NAMED)), None, False),
        (failed_job(30), None, False),
        (job(), None, False),
        (job(), MANIFEST, True),
        (None, MANIFEST, True),
        (None, Artifacts(), False),
        (None, None, False),
    ],
)
def test_completion(view: JobView | None, artifacts: Artifacts | None, found: bool) -> None:
    done = completion(decision(artifacts=artifacts), view)
    assert (done is not None) == found
    if done is not None:
        assert done.reason is Reason.COMPLETED


STOPPED = attempt(end_time=rfc3339(NOW), reason="Suspended", to_step=90, training_time=rfc3339(NOW))


def looked(
    last: Attempt | None, view: JobView | None = None, spec: dict[str, Any] | None = None, **own: Any
) -> Decision:
    found = decision(*([last] if last else []), **own)
    return late(situation(resource(spec), jobs=[view] if view else []), found)


def test_an_attempt_that_completed_while_it_was_stopped() -> None:
    found = looked(STOPPED, complete(NAMED))
    (closed,) = found.status.attempts
    assert (closed.reason, closed.to_step, closed.end_time) == ("Completed", 100, STOPPED.end_time)
    assert found.settled
    for kind in (ConditionType.SUCCEEDED, ConditionType.FINISHED):
        assert said(found, kind) == ("True", "Completed")
    told = looked(STOPPED, artifacts=MANIFEST, progress=Progress(step=99)).status.attempts[0]
    assert (told.reason, told.to_step) == ("Completed", 99)
    assert looked(STOPPED, artifacts=MANIFEST).status.attempts[0].to_step == 90


@pytest.mark.parametrize(
    "last",
    [None, STOPPED.model_copy(update={"reason": "Preempted"}), STOPPED.model_copy(update={"end_time": None})],
)
def test_only_what_was_suspended_is_looked_at_again(last: Attempt | None) -> None:
    assert not looked(last, artifacts=MANIFEST).settled
    assert looked(last, artifacts=MANIFEST).status.attempts == ([last] if last else [])
    assert looked(STOPPED).status.attempts == [STOPPED], "no manifest, no success"


def test_a_resumption_that_came_before_the_end_needs_no_attempt() -> None:
    """The next attempt is recorded, and waits for the pod that then succeeds."""
    coming = attempt(2, start_time=None)
    stopping = job("quotes-t1", ended_pod(0, termination_message=NAMED), deleting=True)
    before = decision(STOPPED, coming, job="quotes-t2")
    found = late(situation(jobs=[stopping]), before)
    assert said(found, ConditionType.SUCCEEDED) == ("True", "Completed")
    assert [(item.number, item.reason) for item in found.status.attempts] == [(1, "Completed")]
    assert found.status.job == "quotes-t1"
    assert late(situation(jobs=[stopping, job("quotes-t2")]), before) is before, "its Job is made already"


def test_a_merge_still_follows() -> None:
    found = looked(STOPPED, artifacts=MANIFEST, spec={"output": {"uri": "gs://bucket/quotes", "merge": True}})
    assert not found.settled
    assert said(found, ConditionType.TRAINING) == ("False", "Completed")
    assert said(found, ConditionType.SUCCEEDED) is None


def test_what_is_said_of_a_suspension_then() -> None:
    suspending = decision(STOPPED).condition(
        situation(), ConditionType.SUSPENDED, False, Reason.SUSPENDING, "The trainer saves a checkpoint and stops."
    )
    found = succeeded(situation(), suspending, None)
    assert said(found, ConditionType.SUSPENDED) == ("False", "Completed")
    assert said(succeeded(situation(), decision(STOPPED), None), ConditionType.SUSPENDED) is None


def test_where_the_result_is() -> None:
    def message(spec: dict[str, Any] | None = None, **own: Any) -> str:
        return succeeded(situation(resource(spec)), decision(**own), None).status.conditions[-1].message

    assert message() == "The adapter is written and verified: gs://bucket/quotes/adapter."
    assert message(artifacts=Artifacts(adapter="gs://x/a")) == "The adapter is written and verified: gs://x/a."
    assert message({"full": {}}).startswith("The model is written and verified: gs://bucket/quotes/model.")
