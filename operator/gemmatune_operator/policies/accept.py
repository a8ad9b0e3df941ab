"""Whether the spec can be run: valid, supported, alone on its output, and fitting its accelerator."""

from __future__ import annotations

from gemmatune_api import catalog, fit
from gemmatune_api.catalog import GemmaModel
from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.runconfig import RunConfig, RunIdentity, build
from gemmatune_api.status import DataStatus, FineTuneStatus, Overrides, Plan
from gemmatune_operator import conditions
from gemmatune_operator.decision import Decision, Situation, fail
from gemmatune_operator.observe import open_attempt, open_merge, output_of, status_of, trained
from gemmatune_operator.policies import describe, remedies, results
from gemmatune_operator.policies.changed import changed
from gemmatune_operator.ports import Object
from gemmatune_operator.views import mapping

RIVAL_SECONDS = 10.0
"""Between two looks at another resource that holds the output."""
DEFAULTS_SECONDS = 10.0
"""Between two looks at defaults of the namespace that cannot be read."""


def accept(situation: Situation, decision: Decision) -> Decision:
    """Sets Accepted, and with it status.resolved and status.plan, once per generation."""
    if any(problem.reason is Reason.INVALID_DEFAULTS for problem in situation.problems):
        return _without_defaults(situation, decision)
    if situation.problems:
        return _invalid(situation, decision)
    observed = situation.observed
    accepted = decision.true(ConditionType.ACCEPTED)
    if accepted and decision.status.observed_generation == observed.generation:
        return decision
    if not decision.status.attempts and (rival := rival_of(situation)) is not None:
        return _second(situation, decision, rival)
    taken = situation.defaults if situation.defaults.given else None
    return planned(situation, changed(situation, decision.update(defaults=taken)))


def planned(situation: Situation, decision: Decision) -> Decision:
    """With the plan of the current spec, as far as the model and the data are known, and Accepted by its verdict.

    An attempt that has a Job keeps its plan: a new one holds from the next attempt on. So does a run that has been
    trained.
    """
    spec, status = situation.spec, decision.status
    model = model_of(situation, decision)
    decision = decision.update(summary=describe.summary(spec, model))
    plan = None
    if model is not None and not trained(status):
        plan = _plan(situation, model, status.data if results.current(situation.observed, status) else None)
    if status.plan is not None and (trained(status) or underway(situation, status)):
        return _kept(situation, decision, model, status.plan, plan)
    if plan is not None:
        decision = _with_plan(decision, plan)
    plan = plan or status.plan
    if plan is not None and plan.verdict == "does not fit":
        message = f"{describe.what(spec, model)} does not fit: {describe.memory(plan)}."
        remedy = remedies.too_large(plan.remedies, started=bool(status.attempts))
        return _refused(situation, decision, Reason.DOES_NOT_FIT, message, remedy)
    message = f"{describe.what(spec, model)}: {describe.verdict(plan)}."
    return decision.condition(situation, ConditionType.ACCEPTED, True, Reason.VALID, message)


def replanned(situation: Situation, decision: Decision) -> Decision:
    """With a plan of the spec as it is now, for an attempt that has no Job yet."""
    plan = decision.status.plan
    if plan is not None and plan.generation == situation.observed.generation:
        return decision
    return planned(situation, decision)


def underway(situation: Situation, status: FineTuneStatus) -> bool:
    """Whether an attempt is open that has, or had, a Job: it was made by the plan that there is."""
    attempt = open_attempt(status)
    return attempt is not None and (attempt.start_time is not None or attempt.job in situation.observed.jobs)


def _kept(
    situation: Situation, decision: Decision, model: GemmaModel | None, plan: Plan, following: Plan | None
) -> Decision:
    """The plan of an attempt that runs, or of a run that is trained; and what the spec now asks of the next attempt."""
    what = describe.what(situation.spec, model)
    if following is None or _same(plan, following):
        decision = decision.update(plan=following or plan)
        message = f"{what}: {describe.verdict(plan)}."
    else:
        message = f"The attempt that runs keeps its plan. The next is {what}: {describe.verdict(following)}."
    return decision.condition(situation, ConditionType.ACCEPTED, True, Reason.VALID, message)


def model_of(situation: Situation, decision: Decision) -> GemmaModel | None:
    """The model, by its URI or by what prepare found; None while it is unknown."""
    prepared = results.prepared(situation.observed, decision.status)
    if prepared is not None and prepared.model is not None:
        return catalog.by_config(prepared.model.shape)
    record = decision.status.prepare
    if record is not None and record.shape is not None and results.current(situation.observed, decision.status):
        return catalog.by_config(record.shape)  # the preparation's pod is gone
    return catalog.by_uri(situation.spec.model.uri)


def config_of(situation: Situation, number: int, plan: Plan | None, overrides: Overrides | None = None) -> RunConfig:
    """What the trainer of an attempt or preparation is told."""
    meta = situation.run.metadata
    identity = RunIdentity(name=meta.name, namespace=meta.namespace, uid=meta.uid)
    return build(situation.spec, identity, number, plan, overrides, situation.defaults.model_cache)


def rival_of(situation: Situation) -> str | None:
    """Name of another resource of the namespace that holds output.uri; of two new ones, the older one."""
    uri, mine = situation.spec.output.uri, _rank(situation.observed.raw)
    for raw in situation.observed.rivals:
        if output_of(raw) != uri or raw["metadata"].get("deletionTimestamp") or _rank(raw) > mine:
            continue
        finished = conditions.is_true(status_of(raw.get("status")).conditions, ConditionType.FINISHED)
        if finished and situation.spec.output.overwrite:
            continue
        return str(raw["metadata"]["name"])
    return None


def _invalid(situation: Situation, decision: Decision) -> Decision:
    """A spec that cannot be run. An attempt or merge that runs goes on with the last valid spec; no attempt follows."""
    reason, message, remedy = describe.problems(situation.problems)
    decision = decision.condition(situation, ConditionType.ACCEPTED, False, reason, message, remedy)
    running = open_attempt(decision.status) or open_merge(decision.status)
    if situation.resource is not None and running is not None:
        return decision
    return fail(situation, decision, reason, message, remedy)


def _without_defaults(situation: Situation, decision: Decision) -> Decision:
    """It is no fault of the resource that the namespace's defaults cannot be read: it waits until they can."""
    reason, message, remedy = describe.problems(situation.problems)
    decision = decision.condition(situation, ConditionType.ACCEPTED, False, reason, message, remedy)
    return decision.waking(DEFAULTS_SECONDS).settle()


def _refused(situation: Situation, decision: Decision, reason: Reason, message: str, remedy: str) -> Decision:
    decision = decision.condition(situation, ConditionType.ACCEPTED, False, reason, message, remedy)
    return fail(situation, decision, reason, message, remedy)


def _second(situation: Situation, decision: Decision, rival: str) -> Decision:
    message = f"{situation.spec.output.uri} belongs to the GemmaFineTune {rival}."
    remedy = f"Use another output.uri, or delete {rival}: this run then starts by itself."
    decision = decision.condition(situation, ConditionType.ACCEPTED, False, Reason.OUTPUT_IN_USE, message, remedy)
    return decision.waking(RIVAL_SECONDS).settle()


def _plan(situation: Situation, model: GemmaModel, data: DataStatus | None) -> Plan:
    settings = situation.settings
    plan = fit.plan(
        situation.spec,
        model,
        rows=data.rows if data else None,
        longest=data.longest if data else None,
        host_memory=settings.host_memory,
        prices=settings.prices or None,
    )
    return plan.model_copy(update={"generation": situation.observed.generation})


def _with_plan(decision: Decision, plan: Plan) -> Decision:
    """A plan for another device or batch gets a new budget of downshifts, and the old downshifts do not bind it."""
    old = decision.status.plan
    if decision.status.attempts and old is not None and _placement(old) != _placement(plan):
        base = decision.budget_base.model_copy(update={"out_of_memory": decision.counters.out_of_memory})
        decision = decision.update(budget_base=base)
    return decision.update(plan=plan)


def _same(old: Plan, new: Plan) -> bool:
    """Whether two plans differ in nothing but the generation they were made for, the prices, and what machines have."""
    ignored = {"generation": None, "cost_per_hour": None, "host_capacity": None}
    return old.model_copy(update=ignored) == new.model_copy(update=ignored)


def _placement(plan: Plan) -> tuple[object, ...]:
    return (plan.backend, plan.chips, plan.memory.capacity, plan.micro_batch_size, plan.gradient_checkpointing)


def _rank(raw: Object) -> tuple[bool, bool, str, str]:
    """Sort key of claims on an output: one with attempts first, then one with a preparation, then the older one."""
    meta, status = mapping(raw.get("metadata")), mapping(raw.get("status"))
    return (
        not status.get("attempts"),
        not status.get("prepare"),
        str(meta.get("creationTimestamp") or ""),
        str(meta.get("uid") or ""),
    )
