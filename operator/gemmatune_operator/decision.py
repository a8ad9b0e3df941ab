"""What a policy sees (Situation) and what it wants (Decision): frozen data, no clock, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gemmatune_api.errors import Problem
from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.placement import LimitsSpec
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_api.spec import FineTuneSpec, GemmaFineTune
from gemmatune_api.status import BudgetBase, Counters, FineTuneStatus, Timers
from gemmatune_operator import conditions
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.observe import Observed
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Situation:
    """All that policies may look at."""

    observed: Observed
    resource: GemmaFineTune | None
    """With every default resolved; None where there is no valid spec to go by."""
    problems: tuple[Problem, ...]
    """What is wrong with the spec as it stands."""
    now: datetime
    settings: Settings
    defaults: SiteDefaults = field(default_factory=SiteDefaults)
    """Those of installation and namespace that the resource was resolved with."""

    @property
    def run(self) -> GemmaFineTune:
        """The resource, for policies that come after acceptance."""
        if self.resource is None:
            raise ValueError("a policy after acceptance was asked about a resource that has no valid spec")
        return self.resource

    @property
    def spec(self) -> FineTuneSpec:
        """The resolved spec."""
        return self.run.spec

    @property
    def limits(self) -> LimitsSpec:
        """Its limits, with every default."""
        return self.spec.limits or LimitsSpec()


@dataclass(frozen=True, slots=True)
class Deletion:
    """An object to delete, by UID: never another one of the same name."""

    kind: str
    name: str
    uid: str
    version: str = ""
    """resourceVersion that it must still have; empty: any."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What shall be: the status, then what is deleted and created, and when to look again."""

    status: FineTuneStatus
    create: tuple[Object, ...] = ()
    delete: tuple[Deletion, ...] = ()
    wake: float | None = None
    """Seconds until the next look without an event; None: only on an event."""
    remedies: Mapping[ConditionType, str] = field(default_factory=dict)
    """Remedies of the conditions that were set in this decision."""
    settled: bool = False
    """Whether later policies have no say."""

    def update(self, **fields: Any) -> Decision:
        """With fields of the status replaced."""
        return replace(self, status=self.status.model_copy(update=fields))

    def condition(
        self, situation: Situation, kind: ConditionType, status: bool, reason: Reason, message: str, remedy: str = ""
    ) -> Decision:
        """With a condition set."""
        observed = situation.observed
        new = conditions.put(self.status.conditions, kind, status, reason, message, observed.generation, situation.now)
        return replace(self.update(conditions=new), remedies={**self.remedies, kind: remedy})

    def creating(self, *objects: Object) -> Decision:
        """With objects to create once the status is written."""
        return replace(self, create=(*self.create, *objects))

    def deleting(self, *objects: Deletion) -> Decision:
        """With objects to delete once the status is written."""
        new = tuple(item for item in objects if item not in self.delete)
        return replace(self, delete=(*self.delete, *new))

    def waking(self, seconds: float) -> Decision:
        """With a look at the latest after so many seconds."""
        seconds = max(0.0, seconds)
        return replace(self, wake=seconds if self.wake is None else min(self.wake, seconds))

    def settle(self) -> Decision:
        """With the last word said."""
        return replace(self, settled=True)

    @property
    def counters(self) -> Counters:
        """Counters, zero at first."""
        return self.status.counters or Counters()

    @property
    def budget_base(self) -> BudgetBase:
        """Counters at the last retry on demand."""
        return self.status.budget_base or BudgetBase()

    @property
    def timers(self) -> Timers:
        """Clocks."""
        return self.status.timers or Timers()

    def true(self, kind: ConditionType) -> bool:
        """Whether a condition is True."""
        return conditions.is_true(self.status.conditions, kind)


Policy = Callable[[Situation, Decision], Decision]
"""One rule: looks at the situation and adds to the decision."""


def fail(situation: Situation, decision: Decision, reason: Reason, message: str, remedy: str) -> Decision:
    """The run ends as Failed; a value of the retry annotation that is there by now counts as seen."""
    decision = decision.condition(situation, ConditionType.FAILED, True, reason, message, remedy)
    decision = decision.condition(situation, ConditionType.FINISHED, True, reason, message)
    for kind in (ConditionType.PROVISIONED, ConditionType.TRAINING):
        if decision.true(kind):
            decision = decision.condition(situation, kind, False, reason, message)
    return decision.update(observed_retry=situation.observed.retry, next_attempt_time=None).settle()


def stamp(situation: Situation) -> str:
    """Now, as the status has it."""
    return rfc3339(situation.now)
