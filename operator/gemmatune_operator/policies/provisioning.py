"""How the next attempt's node is obtained: spot, until too many preemptions or too long a wait speak against it."""

from __future__ import annotations

from gemmatune_api.base import seconds
from gemmatune_api.names import Reason
from gemmatune_api.placement import FallbackSpec, ProvisioningSpec
from gemmatune_api.status import Attempt
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import cause, waiting
from gemmatune_operator.policies.outcome import GOES_ON, Outcome
from gemmatune_operator.views import JobView

SPOT, ON_DEMAND = "spot", "onDemand"


def mode(situation: Situation, decision: Decision) -> str:
    """Provisioning mode of the next attempt."""
    wanted = situation.spec.provisioning or ProvisioningSpec()
    fallback = wanted.fallback or FallbackSpec()
    if wanted.mode != SPOT:
        return wanted.mode or ON_DEMAND
    evictions = sum(attempt.reason == Reason.EVICTED_BY_QUEUE for attempt in decision.status.attempts)
    preempted = decision.counters.preemptions - decision.budget_base.preemptions - evictions  # a queue is no market
    if fallback.after_preemptions is not None and preempted >= fallback.after_preemptions:
        return fallback.mode or ON_DEMAND
    waited = any(attempt.reason == Reason.CAPACITY_UNAVAILABLE for attempt in decision.status.attempts)
    return fallback.mode or ON_DEMAND if waited else SPOT


def no_spot_node(situation: Situation, decision: Decision, attempt: Attempt, job: JobView) -> Outcome:
    """Ends a spot attempt that has waited for its node for provisioning.fallback.afterPending."""
    since = parse_time(decision.timers.pending_since)
    fallback = (situation.spec.provisioning or ProvisioningSpec()).fallback
    if attempt.provisioning != SPOT or since is None or fallback is None or fallback.after_pending is None:
        return GOES_ON
    rest = seconds(fallback.after_pending) - (situation.now - since).total_seconds()
    if rest > 0:
        return Outcome(wake=rest)
    message = f"No spot node for {fallback.after_pending}: {waiting(job).message}"
    return Outcome(cause(Reason.CAPACITY_UNAVAILABLE, message, "Nothing: the next attempt runs on demand."))
