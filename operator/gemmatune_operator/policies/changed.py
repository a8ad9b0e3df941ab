"""What a change of the spec undoes: the preparation of other data, the memory of another machine, a market's record.

Asked where status.resolved takes over a spec, with the one before beside it. That is the only moment that sees every
change: a suspended run, or an operator that was away, sees several of them before anything is prepared or started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.observe import open_attempt
from gemmatune_operator.policies import describe, provisioning, retry

UNPREPARED = frozenset({"suspend", "limits", "ttlAfterFinished"})
"""Fields that no preparation reads."""
MACHINE = ("accelerator", "backend", "scheduling.computeClass", "pod.nodeSelector", "pod.resources")
"""Fields that decide what memory and disk an attempt can have."""
MARKET = ("accelerator", "provisioning")
"""Fields after whose change nothing is known yet of how spot nodes are to be had."""


def changed(situation: Situation, decision: Decision) -> Decision:
    """With the spec as status.resolved, and without what was for the one before."""
    before, after = decision.status.resolved, describe.resolved(situation.spec)
    decision = decision.update(resolved=after)
    if before is None:
        return decision
    if not decision.status.attempts:
        return _preparation(situation, decision, before)
    if _differ(before, after, MACHINE):
        decision = _machine(situation, decision)
    if _differ(before, after, MARKET):
        decision = provisioning.renewed(decision)
    return decision


def _preparation(situation: Situation, decision: Decision, before: Mapping[str, Any]) -> Decision:
    """Whether the recorded preparation holds for the new spec: it was the one of the spec before, which differs only
    in fields that no preparation reads. Otherwise it is nobody's, and another one is made."""
    record, after = decision.status.prepare, decision.status.resolved or {}
    if record is None or record.generation is None:
        return decision
    last = situation.observed.status.observed_generation
    holds = record.generation == last and not _differ(before, after, {*before, *after} - UNPREPARED)
    generation = situation.observed.generation if holds else None
    return decision.update(prepare=record.model_copy(update={"generation": generation}))


def _machine(situation: Situation, decision: Decision) -> Decision:
    """What attempts so far were granted after running out holds no longer; one whose Job is still to be made is not
    granted it either."""
    current = open_attempt(decision.status)
    coming = current is not None and current.start_time is None and current.job not in situation.observed.jobs
    made = decision.counters.attempts - coming
    decision = decision.update(budget_base=decision.budget_base.model_copy(update={"attempts": made}))
    if current is None or not coming:
        return decision
    current = current.model_copy(update={"overrides": retry.without_grants(current.overrides)})
    return decision.update(attempts=[*decision.status.attempts[:-1], current])


def _differ(before: Mapping[str, Any], after: Mapping[str, Any], paths: Iterable[str]) -> bool:
    return any(_at(before, path) != _at(after, path) for path in paths)


def _at(spec: Any, path: str) -> Any:
    for name in path.split("."):
        spec = spec.get(name) if isinstance(spec, Mapping) else None
    return spec
