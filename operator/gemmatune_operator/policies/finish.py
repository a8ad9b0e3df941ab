"""The end of every decision: phase, reason, message and remedy as functions of the conditions, and the columns."""

from __future__ import annotations

from collections.abc import Sequence

from gemmatune_api.names import REASONS, ConditionType, Phase, Reason
from gemmatune_api.status import Condition, Summary
from gemmatune_operator import conditions
from gemmatune_operator.decision import Decision, Situation

_KNOWN_REASONS = frozenset(reason.value for reason in Reason)


def finish(situation: Situation, decision: Decision) -> Decision:
    """With everything that sums up the rest."""
    found = decision.status.conditions
    phase, deciding = phase_of(found)
    condition = conditions.find(found, deciding) if deciding is not None else None
    return decision.update(
        observed_generation=situation.observed.generation,
        phase=phase.value,
        reason=condition.reason if condition else "",
        message=condition.message if condition else "",
        remedy=_remedy(decision, condition),
        summary=_summary(situation, decision),
    )


def phase_of(found: Sequence[Condition]) -> tuple[Phase, ConditionType | None]:
    """The phase, and the condition that decides it; the only place where a phase is made."""

    def true(kind: ConditionType) -> bool:
        return conditions.is_true(found, kind)

    def because(kind: ConditionType, reason: Reason) -> bool:
        return conditions.has(found, kind, "False", reason)

    for kind, phase in (
        (ConditionType.SUCCEEDED, Phase.SUCCEEDED),
        (ConditionType.FAILED, Phase.FAILED),
        (ConditionType.SUSPENDED, Phase.SUSPENDED),
    ):
        if true(kind):
            return phase, kind
    if because(ConditionType.SUSPENDED, Reason.SUSPENDING):
        return Phase.SUSPENDING, ConditionType.SUSPENDED
    if because(ConditionType.SUCCEEDED, Reason.MERGING):
        return Phase.MERGING, _of_merge(found)
    if true(ConditionType.TRAINING):  # also where the spec has become invalid meanwhile: a node is paid for
        return Phase.TRAINING, ConditionType.TRAINING
    if not true(ConditionType.ACCEPTED):
        return Phase.PENDING, _present(found, ConditionType.ACCEPTED)
    if not true(ConditionType.PREPARED):
        prepared = _present(found, ConditionType.PREPARED)
        return (Phase.PREPARING, prepared) if prepared else (Phase.PENDING, ConditionType.ACCEPTED)
    if because(ConditionType.TRAINING, Reason.RETRYING):
        return Phase.RETRYING, ConditionType.TRAINING
    if because(ConditionType.PROVISIONED, Reason.QUEUED):
        return Phase.QUEUED, ConditionType.PROVISIONED
    provisioned = _present(found, ConditionType.PROVISIONED)
    return (Phase.PROVISIONING, provisioned) if provisioned else (Phase.PREPARING, ConditionType.PREPARED)


def _of_merge(found: Sequence[Condition]) -> ConditionType:
    """The condition that tells about a merge: what its pod waits for, where it waits longer than it starts."""
    provisioned = conditions.find(found, ConditionType.PROVISIONED)
    waits = provisioned is not None and provisioned.status == "False" and provisioned.reason != Reason.PROVISIONING
    return ConditionType.PROVISIONED if waits else ConditionType.SUCCEEDED


def _present(found: Sequence[Condition], kind: ConditionType) -> ConditionType | None:
    return kind if conditions.find(found, kind) is not None else None


def _remedy(decision: Decision, condition: Condition | None) -> str:
    """The remedy that came with the deciding condition; a later look that changes nothing keeps it."""
    if condition is None:
        return ""
    given = decision.remedies.get(ConditionType(condition.type))
    if given:
        return given
    if (decision.status.reason, decision.status.message) == (condition.reason, condition.message):
        return decision.status.remedy
    return REASONS[Reason(condition.reason)].remedy if condition.reason in _KNOWN_REASONS else ""


def _summary(situation: Situation, decision: Decision) -> Summary | None:
    """The columns that acceptance wrote, with the retries that are used up."""
    summary = decision.status.summary
    if summary is None or situation.resource is None:
        return summary
    limit = situation.limits.max_retries or 0
    return summary.model_copy(update={"retries": f"{decision.counters.retries - decision.budget_base.retries}/{limit}"})
