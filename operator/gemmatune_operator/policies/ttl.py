"""ttlAfterFinished: so long after its end the resource is deleted, and its Jobs with it; the bucket never."""

from __future__ import annotations

from gemmatune_api import names
from gemmatune_api.base import seconds
from gemmatune_api.names import ConditionType
from gemmatune_operator import conditions
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.decision import Decision, Deletion, Situation

AGAIN_SECONDS = 5.0
"""Until a deletion that met a newer version of the resource is thought over again."""


def ttl(situation: Situation, decision: Decision) -> Decision:
    """Deletes the resource when its time has come; before that, wakes exactly then.

    The clock is the transition of Finished: it survives a restart, a changed ttl moves the end, and a run that is
    tried again is not finished. The resource goes in the exact version that was looked at, so that a retry which
    came in between is not lost.
    """
    finished = conditions.find(decision.status.conditions, ConditionType.FINISHED)
    since = parse_time(finished.last_transition_time) if finished is not None and finished.status == "True" else None
    limit = situation.spec.ttl_after_finished if situation.resource is not None else None
    if since is None or limit is None:
        return decision
    observed = situation.observed
    rest = seconds(limit) - (situation.now - since).total_seconds()
    if rest > 0:
        return decision.waking(rest)
    if decision.status == observed.status:  # first the end is written down, then forgotten
        item = Deletion(names.KIND, observed.name, observed.uid, observed.resource_version)
        decision = decision.deleting(item)
    return decision.waking(AGAIN_SECONDS)
