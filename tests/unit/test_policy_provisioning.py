"""provisioning: spot until preemptions or waiting speak against it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gemmatune_api.names import Reason
from gemmatune_api.status import BudgetBase, Counters, Timers
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.policies.provisioning import mode, no_spot_node, renewed, waits_in_vain
from tests.support.situations import NOW, attempt, decision, job, pod, resource, situation

SPOT = {"provisioning": {"mode": "spot", "fallback": {"afterPreemptions": 2, "afterPending": "10m"}}}


def test_on_demand_stays_on_demand() -> None:
    assert mode(situation(), decision(counters=Counters(preemptions=9))) == "onDemand"


@pytest.mark.parametrize(
    ("preemptions", "base", "expected"),
    [(0, 0, "spot"), (1, 0, "spot"), (2, 0, "onDemand"), (3, 0, "onDemand"), (3, 2, "spot"), (4, 2, "onDemand")],
)
def test_after_preemptions(preemptions: int, base: int, expected: str) -> None:
    found = decision(counters=Counters(preemptions=preemptions), budget_base=BudgetBase(preemptions=base))
    assert mode(situation(resource(SPOT)), found) == expected


@pytest.mark.parametrize(
    ("waits", "base", "expected"), [(0, None, "spot"), (1, None, "onDemand"), (1, 1, "spot"), (2, 1, "onDemand")]
)
def test_after_waiting_in_vain(waits: int, base: int | None, expected: str) -> None:
    counters, budget = Counters(capacity_fallbacks=waits), BudgetBase(capacity_fallbacks=base)
    assert mode(situation(resource(SPOT)), decision(counters=counters, budget_base=budget)) == expected


def test_a_wait_in_vain_counts_also_when_nobody_sees_it_any_more() -> None:
    newest = [attempt(number, end_time=rfc3339(NOW), reason=Reason.CRASHED) for number in range(2, 22)]
    assert mode(situation(resource(SPOT)), decision(*newest, counters=Counters(capacity_fallbacks=1))) == "onDemand"


def test_a_queue_is_no_market() -> None:
    """Five evictions, a retry on demand, then preemptions: only these count, also when no row of them is shown."""
    for lost, expected in ((1, "spot"), (2, "onDemand")):
        counters = Counters(preemptions=5 + lost, queue_evictions=5)
        after_retry = BudgetBase(preemptions=5, spot_losses=0)
        assert mode(situation(resource(SPOT)), decision(counters=counters, budget_base=after_retry)) == expected
        more = Counters(preemptions=7 + lost, queue_evictions=5)
        assert (
            mode(situation(resource(SPOT)), decision(counters=more, budget_base=BudgetBase(spot_losses=2))) == expected
        )


def test_a_status_of_an_earlier_version_tells_by_its_attempts() -> None:
    waited = attempt(provisioning="spot", end_time=rfc3339(NOW), reason=Reason.CAPACITY_UNAVAILABLE)
    assert mode(situation(resource(SPOT)), decision(waited)) == "onDemand"
    evicted = [attempt(number, end_time=rfc3339(NOW), reason=Reason.EVICTED_BY_QUEUE) for number in (1, 2)]
    ending = attempt(3, reason=Reason.EVICTED_BY_QUEUE)  # asked to stop, and not counted yet
    for preemptions, expected in ((3, "spot"), (4, "onDemand")):
        found = decision(*evicted, ending, counters=Counters(preemptions=preemptions))
        assert mode(situation(resource(SPOT)), found) == expected
        kept = BudgetBase(preemptions=1)
        found = decision(*evicted, counters=Counters(preemptions=preemptions + 1), budget_base=kept)
        assert mode(situation(resource(SPOT)), found) == expected


def test_a_new_market() -> None:
    used = Counters(preemptions=9, queue_evictions=2, capacity_fallbacks=1)
    found = renewed(decision(counters=used, budget_base=BudgetBase(preemptions=1, out_of_memory=2)))
    assert found.budget_base == BudgetBase(preemptions=1, out_of_memory=2, spot_losses=7, capacity_fallbacks=1)
    assert found.counters == used
    assert mode(situation(resource(SPOT)), found) == "spot"
    assert renewed(decision()).status.counters is None, "nothing was counted"


def test_what_only_the_attempts_tell_is_counted_when_the_market_changes() -> None:
    """They are shown no more when it counts."""
    rows = [
        attempt(number, end_time=rfc3339(NOW), reason=reason)
        for number, reason in enumerate((Reason.EVICTED_BY_QUEUE, Reason.CAPACITY_UNAVAILABLE), 1)
    ]
    for shown in (rows, rows[:1], rows[1:]):
        found = renewed(decision(*shown, counters=Counters(preemptions=4))).update(attempts=[])
        queued, waits = int(rows[0] in shown), int(rows[1] in shown)
        assert (found.counters.queue_evictions or 0, found.counters.capacity_fallbacks or 0) == (queued, waits)
        assert mode(situation(resource(SPOT)), found) == "spot"
        for more, expected in ((1, "spot"), (2, "onDemand")):
            lost = found.counters.model_copy(update={"preemptions": 4 + more})
            assert mode(situation(resource(SPOT)), found.update(counters=lost)) == expected
        again = found.counters.model_copy(update={"capacity_fallbacks": waits_in_vain(found) + 1})
        assert mode(situation(resource(SPOT)), found.update(counters=again)) == "onDemand"


def test_defaults_fall_back_after_three() -> None:
    raw = resource({"provisioning": {"mode": "spot"}})
    assert mode(situation(raw), decision(counters=Counters(preemptions=2))) == "spot"
    assert mode(situation(raw), decision(counters=Counters(preemptions=3))) == "onDemand"


@pytest.mark.parametrize(("waited", "ends"), [(0, False), (599, False), (600, True), (6000, True)])
def test_no_spot_node(waited: int, ends: bool) -> None:
    since = rfc3339(NOW)
    seen = situation(resource(SPOT), now=NOW + timedelta(seconds=waited))
    pending = job("quotes-t1", pod(phase="Pending", scheduled=False, unscheduled_message="0/3 nodes"))
    found = no_spot_node(seen, decision(timers=Timers(pending_since=since)), attempt(provisioning="spot"), pending)
    if ends:
        assert found.cause is not None
        assert found.cause.reason is Reason.CAPACITY_UNAVAILABLE
        assert "10m" in found.cause.message
        assert "0/3 nodes" in found.cause.message
    else:
        assert found.cause is None
        assert found.wake == 600 - waited


def test_only_waiting_spot_attempts_end() -> None:
    late = situation(resource(SPOT), now=NOW + timedelta(days=1))
    timers = Timers(pending_since=rfc3339(NOW))
    assert no_spot_node(late, decision(timers=timers), attempt(provisioning="onDemand"), job()).cause is None
    assert no_spot_node(late, decision(timers=Timers()), attempt(provisioning="spot"), job()).cause is None
    plain = situation(now=NOW + timedelta(days=1))
    assert no_spot_node(plain, decision(timers=timers), attempt(provisioning="spot"), job()).cause is None
