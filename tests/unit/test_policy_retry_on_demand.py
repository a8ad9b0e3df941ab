"""retry: trying again on demand, by annotation or by a correction: when, and what starts anew."""

from __future__ import annotations

from typing import Any

from gemmatune_api.names import ANNOTATION_RETRY, ConditionType, Reason
from gemmatune_api.status import BudgetBase, Counters, JobRecord
from gemmatune_operator.policies import retry
from tests.support.situations import attempt, decision, resource, said, situation

FAILED = (ConditionType.FAILED, ConditionType.FINISHED)


def demanded(raw: Any, **status: Any) -> Any:
    return retry.on_demand(situation(raw), decision(attempt(end_time="2026-03-01T12:00:00Z"), true=FAILED, **status))


def test_on_demand_needs_a_new_value() -> None:
    asked = resource(annotations={ANNOTATION_RETRY: "2"})
    assert demanded(asked, observed_retry="2").settled
    found = demanded(asked, observed_retry="1", counters=Counters(attempts=4, retries=3, preemptions=2))
    assert not found.settled
    assert said(found, ConditionType.FAILED) == ("False", "Retrying")
    assert said(found, ConditionType.FINISHED) == ("False", "Retrying")
    assert found.status.observed_retry == "2"
    assert found.status.budget_base == BudgetBase(retries=3, preemptions=2, spot_losses=2, capacity_fallbacks=0)
    moved = demanded(asked, counters=Counters(attempts=4, preemptions=2), budget_base=BudgetBase(attempts=3))
    assert moved.status.budget_base.attempts == 3, "what another machine had is still not carried on"
    assert demanded(resource(), observed_retry=None).settled
    assert demanded(resource(), observed_retry="2").settled, "a removed annotation asks for nothing"


def test_on_demand_prepares_anew_only_before_the_first_attempt() -> None:
    asked = situation(resource(annotations={ANNOTATION_RETRY: "1"}))
    prepared = JobRecord(number=1, job="quotes-p1", generation=1)
    begun = decision(attempt(end_time="2026-03-01T12:00:00Z"), true=FAILED, prepare=prepared)
    assert retry.on_demand(asked, begun).status.prepare == prepared
    fresh = retry.on_demand(asked, decision(true=FAILED, prepare=prepared))
    assert fresh.status.prepare == JobRecord(number=1, job="quotes-p1", generation=None)
    refused = retry.on_demand(asked, decision(true=FAILED))
    assert refused.status.prepare is None
    assert "annotation" in fresh.status.conditions[-1].message
    corrected = retry.on_demand(situation(resource(generation=2)), decision(true=FAILED, prepare=prepared))
    assert "corrected" in corrected.status.conditions[-1].message


def test_a_correction_counts_before_the_first_attempt() -> None:
    changed = resource(generation=2)
    assert demanded(changed).settled, "with an attempt, the spec is fixed"
    prepared = JobRecord(number=1, job="quotes-p1", generation=1)
    fresh = decision(true=FAILED, prepare=prepared)
    assert retry.on_demand(situation(resource(generation=1)), fresh).settled
    found = retry.on_demand(situation(changed), fresh)
    assert not found.settled
    assert found.status.prepare.generation is None  # type: ignore[union-attr]


def test_a_refused_spec_may_be_corrected_later_too() -> None:
    refused = decision(attempt(end_time="2026-03-01T12:00:00Z"), true=FAILED)
    broken = refused.condition(situation(), ConditionType.ACCEPTED, False, Reason.INVALID_SPEC, "no")
    assert not retry.on_demand(situation(resource(generation=2)), broken).settled


def test_succeeded_is_the_end_and_running_is_none_of_its_business() -> None:
    succeeded = decision(attempt(), true=(ConditionType.SUCCEEDED,))
    assert retry.on_demand(situation(), succeeded).settled
    running = decision(attempt())
    assert retry.on_demand(situation(resource(annotations={ANNOTATION_RETRY: "9"})), running) == running
