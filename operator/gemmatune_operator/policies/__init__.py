"""The rules of the operator, one file each; `plan` asks them in order until one has the last word."""

from __future__ import annotations

from datetime import datetime

from gemmatune_api import defaults, validate
from gemmatune_api.errors import InvalidResourceError, Problem
from gemmatune_api.site_defaults import SiteDefaults, applied, without_output
from gemmatune_api.spec import GemmaFineTune
from gemmatune_operator.decision import Decision, Policy, Situation
from gemmatune_operator.observe import Observed
from gemmatune_operator.policies import cost, site_defaults
from gemmatune_operator.policies.accept import accept
from gemmatune_operator.policies.attempt import attempt
from gemmatune_operator.policies.cleanup import cleanup
from gemmatune_operator.policies.finish import finish
from gemmatune_operator.policies.merge import merge
from gemmatune_operator.policies.prepare import prepare
from gemmatune_operator.policies.retry import on_demand
from gemmatune_operator.policies.suspend import suspend
from gemmatune_operator.policies.ttl import ttl
from gemmatune_operator.settings import Settings

ORDER: tuple[Policy, ...] = (on_demand, accept, suspend, prepare, attempt, merge)
"""Each may settle the matter for those after it; cleanup and finish always have their say."""


def plan(observed: Observed, now: datetime, settings: Settings) -> Decision:
    """What shall be, from what is."""
    situation = situation_of(observed, now, settings)
    decision = Decision(status=observed.status)
    for policy in ORDER:
        decision = policy(situation, decision)
        if decision.settled:
            break
    return ttl(situation, cost.shown_cost(situation, finish(situation, cleanup(situation, decision))))


def situation_of(observed: Observed, now: datetime, settings: Settings) -> Situation:
    """What policies see; a spec that cannot be run leaves the last valid one in force for an attempt that runs."""
    problems: tuple[Problem, ...] = ()
    resource: GemmaFineTune | None
    given = observed.status.defaults or SiteDefaults()
    try:
        resource = validate.parse(observed.raw, settings.refused)
        given = site_defaults.taken(observed, settings)
        resource = applied(resource, given)
        problems = (*without_output(resource), *cost.problems(resource.spec, settings))
    except InvalidResourceError as error:
        resource, problems = None, error.problems
    if problems:
        resource = _last_valid(observed, settings)
    if resource is not None:
        resource = resource.model_copy(update={"spec": defaults.resolve(resource.spec)})
    return Situation(
        observed=observed, resource=resource, problems=problems, now=now, settings=settings, defaults=given
    )


def _last_valid(observed: Observed, settings: Settings) -> GemmaFineTune | None:
    spec = dict(observed.status.resolved or {})
    asked = observed.raw.get("spec")
    if isinstance(asked, dict) and isinstance(asked.get("suspend"), bool):
        spec["suspend"] = asked["suspend"]
    try:
        return validate.parse({**observed.raw, "spec": spec}, settings.refused) if spec else None
    except InvalidResourceError:
        return None
