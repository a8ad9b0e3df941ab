"""changed: what a change of the spec undoes, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api.status import Attempt, BudgetBase, Counters, JobRecord, Overrides
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.policies import describe
from gemmatune_operator.policies.changed import changed
from gemmatune_operator.views import JobView
from tests.support.situations import GIB, NOW, attempt, decision, job, resource, situation

Spec = dict[str, Any]
H100 = {"accelerator": {"gpu": {"type": "nvidia-h100-80gb"}}}
COUNTED = Counters(attempts=3, preemptions=7, queue_evictions=2, capacity_fallbacks=1)


def after(
    change: Spec,
    *attempts: Attempt,
    before: Spec | None = None,
    jobs: tuple[JobView, ...] = (),
    known: bool = True,
    observed: int = 1,
    **status: Any,
) -> Decision:
    """A run whose spec of generation 1 is now another, of generation 2."""
    resolved = describe.resolved(situation(resource(before)).spec) if known else None
    seen = situation(resource(change, generation=2, status={"observedGeneration": observed}), jobs=jobs)
    return changed(seen, decision(*attempts, resolved=resolved, **status))


def test_the_spec_is_taken_over() -> None:
    for known in (True, False):
        found = after(H100, known=known).status
        assert found.resolved is not None
        assert found.resolved["accelerator"]["gpu"]["type"] == "nvidia-h100-80gb"
    first = after(H100, known=False, counters=COUNTED, prepare=PREPARED).status
    assert (first.budget_base, first.prepare) == (None, PREPARED), "there was no spec before"


PREPARED = JobRecord(number=1, job="quotes-p1", generation=1, retries=2)


@pytest.mark.parametrize("change", [{"limits": {"maxRetries": 9}}, {"suspend": True}, {"ttlAfterFinished": "1h"}, {}])
def test_what_no_preparation_reads_keeps_it(change: Spec) -> None:
    assert after(change, prepare=PREPARED).status.prepare == PREPARED.model_copy(update={"generation": 2})


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"maxSteps": 50}},
        {"dataset": {"uri": "gs://bucket/other.jsonl", "text": {"template": "{text}"}}},
        H100,
    ],
)
def test_a_correction_makes_it_nobodys(change: Spec) -> None:
    assert after(change, prepare=PREPARED).status.prepare == PREPARED.model_copy(update={"generation": None})


def test_what_was_nobodys_stays_so() -> None:
    """The spec before was not the one prepared: that the next is equal to it says nothing."""
    unused = PREPARED.model_copy(update={"generation": None})
    assert after({"suspend": False}, prepare=unused).status.prepare == unused
    older = after({"suspend": False}, prepare=PREPARED.model_copy(update={"generation": 0})).status.prepare
    assert older is not None
    assert older.generation is None, "as a status of an earlier version may have it"


def test_from_the_first_attempt_on_it_has_no_say() -> None:
    assert after(H100, attempt(), prepare=PREPARED).status.prepare == PREPARED


CLOSED = attempt(3, end_time=rfc3339(NOW), overrides=Overrides(memory=30 * GIB, micro_batch_size=2))


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (H100, 3),
        ({"backend": "torch", "pod": {"resources": {"limits": {"memory": "24Gi"}}}}, 3),
        ({"pod": {"nodeSelector": {"pool": "small"}}}, 3),
        ({"scheduling": {"computeClass": "small"}}, 3),
        ({"scheduling": {"queueName": "queue"}}, None),
        ({"pod": {"image": "other:1"}}, None),
        ({"limits": {"maxRetries": 9}}, None),
    ],
)
def test_grants_hold_for_the_machine_they_were_made_for(change: Spec, made: int | None) -> None:
    found = after(change, CLOSED, counters=COUNTED).status
    assert (found.budget_base or BudgetBase()).attempts == made
    assert found.attempts == [CLOSED], "what was is told as it was"


def test_another_backend_is_another_process() -> None:
    cpu = {"accelerator": {"cpu": {}}, "qlora": None, "lora": {}}
    found = after({**cpu, "backend": "xla"}, CLOSED, before=cpu, counters=COUNTED).status
    assert found.budget_base is not None
    assert found.budget_base.attempts == 3


def test_an_attempt_whose_job_is_still_to_be_made_gets_no_grant_either() -> None:
    coming = CLOSED.model_copy(update={"start_time": None, "end_time": None})
    found = after(H100, attempt(2, end_time=rfc3339(NOW)), coming, counters=COUNTED).status
    assert found.attempts[-1].overrides == Overrides(micro_batch_size=2)
    assert found.budget_base is not None
    assert found.budget_base.attempts == 2, "what it will be granted holds"
    plain = after(H100, coming.model_copy(update={"overrides": None}), counters=COUNTED).status
    assert plain.attempts[-1].overrides is None
    for running in (coming, CLOSED.model_copy(update={"end_time": None})):
        found = after(H100, running, counters=COUNTED, jobs=(job("quotes-t3"),)).status
        assert found.attempts == [running], "its Job runs as it is"
        assert found.budget_base is not None
        assert found.budget_base.attempts == 3


def test_before_the_first_attempt_there_is_nothing_to_outdate() -> None:
    assert after(H100).status.budget_base is None


@pytest.mark.parametrize(
    ("change", "renewed"),
    [
        (H100, True),
        ({"provisioning": {"mode": "spot", "fallback": {"afterPreemptions": 9}}}, True),
        ({"limits": {"maxPreemptions": 99}}, False),
        ({"pod": {"nodeSelector": {"pool": "small"}}}, False),
    ],
)
def test_another_market_has_no_record_yet(change: Spec, renewed: bool) -> None:
    base = BudgetBase(preemptions=1, retries=1)
    found = after(change, CLOSED, counters=COUNTED, budget_base=base).status.budget_base
    assert found is not None
    assert (found.spot_losses, found.capacity_fallbacks) == ((5, 1) if renewed else (None, None))
    assert (found.preemptions, found.retries) == (1, 1), "limits.maxPreemptions and limits.maxRetries go on"
