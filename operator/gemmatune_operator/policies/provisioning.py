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
    base = decision.budget_base
    lost = _losses(decision) - (base.preemptions if base.spot_losses is None else base.spot_losses)
    if fallback.after_preemptions is not None and lost >= fallback.after_preemptions:
        return fallback.mode or ON_DEMAND
    waited = waits_in_vain(decision) > (base.capacity_fallbacks or 0)
    return fallback.mode or ON_DEMAND if waited else SPOT


def renewed(decision: Decision) -> Decision:
    """With all that speaks against spot so far forgotten; limits.maxPreemptions goes on.

    What only the attempts tell is counted now, while they are shown.
    """
    waits, queued = waits_in_vain(decision), evictions(decision)
    base = {"spot_losses": _losses(decision), "capacity_fallbacks": waits}
    decision = decision.update(budget_base=decision.budget_base.model_copy(update=base))
    counted = {"capacity_fallbacks": waits or None, "queue_evictions": queued or None}
    return decision.update(counters=decision.counters.model_copy(update=counted)) if waits or queued else decision


def evictions(decision: Decision) -> int:
    """How often Kueue took an admission back."""
    known = decision.counters.queue_evictions
    return _ended(decision, Reason.EVICTED_BY_QUEUE) if known is None else known


def waits_in_vain(decision: Decision) -> int:
    """How often a spot attempt found no node."""
    known = decision.counters.capacity_fallbacks
    return _ended(decision, Reason.CAPACITY_UNAVAILABLE) if known is None else known


def _losses(decision: Decision) -> int:
    """What counts for fallback.afterPreemptions: a queue is no market."""
    return decision.counters.preemptions - evictions(decision)


def _ended(decision: Decision, reason: Reason) -> int:
    """Attempts that ended by a reason, where an earlier version of the operator has not counted them."""
    return sum(attempt.reason == reason and attempt.end_time is not None for attempt in decision.status.attempts)


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
