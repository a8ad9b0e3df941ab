"""cost: priced by attempt, summed over attempts, ended at the limit, and refused where nobody could enforce it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api.names import ANNOTATION_RETRY, ConditionType, Reason
from gemmatune_api.prices import Prices
from gemmatune_api.status import Cost, Progress, Timers
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.policies import cost, plan
from gemmatune_operator.policies.attempt import attempt as step
from gemmatune_operator.settings import Settings
from tests.support.situations import NOW, attempt, decision, resource, said, situation
from tests.support.situations import plan as a_plan

L4: Prices = {"nvidia-l4": {"onDemand": 3.6, "spot": 1.8}}
LIMITED = {"limits": {"maxCost": 2.0}}


def seen(seconds: float = 0, prices: Prices = L4, spec: Any = None) -> Situation:
    now = NOW + timedelta(seconds=seconds)
    return situation(resource(spec or LIMITED), now=now, settings=Settings(prices=prices))


def spent(amount: float) -> Decision:
    return decision(timers=Timers(spent=amount))


@pytest.mark.parametrize(
    ("before", "now", "ends"), [(0, 1999, False), (0, 2000, True), (1.5, 499, False), (1.5, 500, True), (9, 0, True)]
)
def test_cost_is_summed_over_attempts(before: float, now: int, ends: bool) -> None:
    current = attempt(training_time=rfc3339(NOW), cost_per_hour=3.6)
    found = cost.training(seen(now), spent(before), current)
    assert (found.cause is not None) == ends
    if found.cause is not None:
        assert found.gently, "a checkpoint comes first"
        assert (found.cause.reason, found.cause.message) == (
            Reason.BUDGET_EXCEEDED,
            "The run's training has cost limits.maxCost (2).",
        )
        assert "Raise limits.maxCost" in found.cause.remedy
        assert ANNOTATION_RETRY in found.cause.remedy
    else:
        assert found.wake == pytest.approx(1), "exactly when the limit will be reached"


def test_waiting_costs_nothing() -> None:
    assert cost.training(seen(10**6), decision(), attempt(cost_per_hour=3.6)).cause is None
    plain = seen(10**6, spec={"limits": {}})
    assert cost.training(plain, decision(), attempt(training_time=rfc3339(NOW), cost_per_hour=3.6)).cause is None
    free = seen(10**6, prices={"nvidia-l4": 0.0})
    assert cost.training(free, decision(), attempt(training_time=rfc3339(NOW))) == cost.GOES_ON


@pytest.mark.parametrize(
    ("prices", "mode", "chips", "expected"),
    [
        (L4, "onDemand", 1, 3.6),
        (L4, "spot", 1, 1.8),
        (L4, "spot", 8, 14.4),
        (L4, "flexStart", 1, 3.6),
        ({"nvidia-l4": 0.5}, "spot", 2, 1.0),
        ({"nvidia-a100-80gb": 9.0}, "spot", 2, None),
    ],
)
def test_the_price_of_an_attempt(prices: Prices, mode: str, chips: int, expected: float | None) -> None:
    without = seen(prices=prices, spec={"limits": {}})
    assert cost.rate(without, decision(plan=a_plan(chips=chips)), attempt(provisioning=mode)) == expected
    recorded = attempt(provisioning=mode, cost_per_hour=7.0)
    assert cost.rate(without, decision(), recorded) == 7.0, "what was agreed at its start holds"


def test_the_price_is_recorded_when_the_job_is_made() -> None:
    spot = seen(spec={"provisioning": {"mode": "spot"}})
    found = step(spot, decision(attempt(start_time=None)))
    assert found.status.attempts[0].cost_per_hour == 1.8


@pytest.mark.parametrize("prices", [{}, {"nvidia-a100-80gb": 5.0}])
def test_a_limit_without_a_price_is_refused(prices: Prices) -> None:
    found = plan(seen(prices=prices).observed, NOW, Settings(prices=prices))
    assert said(found, ConditionType.ACCEPTED) == ("False", "InvalidSpec")
    assert said(found, ConditionType.FAILED) == ("True", "InvalidSpec")
    assert "spec.limits.maxCost" in found.status.message
    assert found.status.remedy.startswith(
        "Ask whoever runs the operator for a price of nvidia-l4 (the chart's value prices.nvidia-l4), or remove "
        "limits.maxCost where this namespace does not require it; then "
    )
    assert found.create == ()
    assert said(plan(seen().observed, NOW, Settings(prices=L4)), ConditionType.ACCEPTED) == ("True", "Valid")


def test_no_attempt_starts_once_the_limit_is_spent() -> None:
    found = step(seen(), spent(2.0))
    assert said(found, ConditionType.FAILED) == ("True", "BudgetExceeded")
    assert found.create == ()
    assert step(seen(), spent(1.99)).create != ()


def test_the_cost_is_written_only_with_another_change() -> None:
    trains = decision(attempt(training_time=rfc3339(NOW), cost_per_hour=3.6), progress=Progress(eta="30m", step=1))
    unchanged = seen(1000)
    status = trains.status.model_dump(by_alias=True, exclude_none=True)
    unchanged = situation(resource(LIMITED, status=status), now=unchanged.now, settings=unchanged.settings)
    same = Decision(status=unchanged.observed.status)
    assert cost.shown_cost(unchanged, same).status == unchanged.observed.status
    changed = cost.shown_cost(unchanged, same.update(message="another"))
    assert changed.status.cost == Cost(so_far=1.0, estimated=2.8)


@pytest.mark.parametrize(
    ("progress", "estimated"),
    [
        (None, None),
        (Progress(step=1, total_steps=9), None),
        (Progress(step=1, total_steps=9, eta="1h"), 4.1),
        (Progress(step=9, total_steps=9, eta="0s"), 0.5),
        (Progress(step=9, total_steps=9), 0.5),
        (Progress(step=1, total_steps=9, eta=f"{'9' * 400}h"), None),
        (Progress(step=1, total_steps=9, eta=f"1{'0' * 308}s"), None),
    ],
)
def test_the_estimate(progress: Progress | None, estimated: float | None) -> None:
    closed = attempt(end_time=rfc3339(NOW), cost_per_hour=3.6)
    found = cost.shown_cost(seen(), decision(closed, timers=Timers(spent=0.5), progress=progress))
    assert found.status.cost == Cost(so_far=0.5, estimated=estimated)


def test_without_prices_no_cost_is_shown() -> None:
    plain = situation(resource())
    assert cost.shown_cost(plain, decision(attempt())).status.cost is None


def test_the_estimate_goes_by_the_newest_price_that_is_known() -> None:
    priced = attempt(end_time=rfc3339(NOW), cost_per_hour=3.6)
    runs = decision(priced, attempt(2), progress=Progress(step=1, total_steps=9, eta="1h"))
    unpriced = seen(prices={}, spec={"limits": {}})
    assert cost.shown_cost(unpriced, runs).status.cost == Cost(so_far=0.0, estimated=3.6)


def test_a_cpu_node_is_paid_for_once_whatever_its_virtual_devices() -> None:
    spec = {"backend": "xla", "lora": {}, "accelerator": {"cpu": {"devices": 8}}, **LIMITED}
    eight = decision(plan=a_plan(chips=8, hosts=1))
    assert cost.rate(seen(prices={"cpu": 1.5}, spec=spec), eight, attempt()) == 1.5
    gpus = {"accelerator": {"gpu": {"type": "nvidia-l4", "count": 8}}}
    assert cost.rate(seen(prices={"nvidia-l4": 0.5}, spec=gpus), eight, attempt()) == 4.0
