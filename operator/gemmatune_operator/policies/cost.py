"""limits.maxCost: what the attempts' training time costs by the price table, and the end of the run at the limit."""

from __future__ import annotations

import math

from gemmatune_api import prices
from gemmatune_api.base import seconds
from gemmatune_api.errors import Problem, shown
from gemmatune_api.names import Reason
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Attempt, Cost
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import Cause, cause
from gemmatune_operator.observe import open_attempt
from gemmatune_operator.policies.outcome import GOES_ON, Outcome
from gemmatune_operator.settings import Settings

HOUR = 3600.0


def problems(spec: FineTuneSpec, settings: Settings) -> tuple[Problem, ...]:
    """A limit that nobody could enforce: there is no price for the accelerator."""
    limit = spec.limits.max_cost if spec.limits else None
    name = prices.type_of(spec.accelerator)
    if limit is None or prices.per_hour(settings.prices, name) is not None:
        return ()
    message = f"the price table of this installation has no price for {name}, so the limit cannot be kept"
    remedy = (
        f"Ask whoever runs the operator for a price of {name} (the chart's value prices.{name}), or remove "
        f"limits.maxCost where this namespace does not require it; then {settings.try_again}."
    )
    return (Problem("spec.limits.maxCost", message, remedy, shown(limit)),)


def rate(situation: Situation, decision: Decision, attempt: Attempt) -> float | None:
    """Price per hour of an attempt's accelerators: as recorded at its start, else as the price table is now."""
    if attempt.cost_per_hour is not None:
        return attempt.cost_per_hour
    plan = decision.status.plan
    name = prices.type_of(situation.spec.accelerator)
    price = prices.per_hour(situation.settings.prices, name, attempt.provisioning)
    return (
        None
        if price is None or plan is None
        else round(price * prices.units(situation.spec.accelerator, plan.hosts, plan.chips), 6)
    )


def used_up(situation: Situation, decision: Decision) -> Cause | None:
    """The cause that keeps another attempt from starting, once the closed ones have cost limits.maxCost."""
    limit = situation.limits.max_cost
    return _exceeded(situation) if limit is not None and decision.timers.spent >= limit else None


def training(situation: Situation, decision: Decision, attempt: Attempt) -> Outcome:
    """Ends the run when its training time has cost limits.maxCost; waiting for nodes costs nothing yet."""
    limit, price = situation.limits.max_cost, rate(situation, decision, attempt)
    began = parse_time(attempt.training_time)
    if limit is None or price is None or began is None:
        return GOES_ON
    rest = limit - decision.timers.spent - price * (situation.now - began).total_seconds() / HOUR
    if rest > 0:
        return Outcome(wake=rest / price * HOUR) if price else GOES_ON
    return Outcome(_exceeded(situation), gently=True)


def _exceeded(situation: Situation) -> Cause:
    remedy = f"Raise limits.maxCost, then {situation.settings.try_again}: the run resumes."
    message = f"The run's training has cost limits.maxCost ({situation.limits.max_cost:g})."
    return cause(Reason.BUDGET_EXCEEDED, message, remedy)


def shown_cost(situation: Situation, decision: Decision) -> Decision:
    """With status.cost as of now, where something else has changed too: the clock alone is no reason for a write."""
    status = decision.status
    known = situation.resource is not None and any(item.cost_per_hour is not None for item in status.attempts)
    if not known or status == situation.observed.status:
        return decision
    attempt = open_attempt(status)
    price = rate(situation, decision, attempt) if attempt is not None else None
    began = parse_time(attempt.training_time) if attempt is not None else None
    trained = (situation.now - began).total_seconds() if began is not None else 0.0
    so_far = decision.timers.spent + (price or 0.0) * trained / HOUR
    return decision.update(cost=Cost(so_far=_shown(so_far), estimated=_shown(_estimated(decision, so_far))))


def _shown(amount: float | None) -> float | None:
    """With two digits; a status that was written by hand may lead to more than JSON can say."""
    return round(amount, 2) if amount is not None and math.isfinite(amount) else None


def _estimated(decision: Decision, so_far: float) -> float | None:
    """What the whole run will have cost, by the time to the end that the trainer reports."""
    progress, attempts = decision.status.progress, decision.status.attempts
    price = next((item.cost_per_hour for item in reversed(attempts) if item.cost_per_hour is not None), None)
    if progress is None or price is None:
        return None
    if progress.total_steps and progress.step >= progress.total_steps:
        return so_far
    try:
        return so_far + price * seconds(progress.eta) / HOUR
    except (ValueError, OverflowError):  # a trainer may write any text: no time, or more hours than a float has
        return None
