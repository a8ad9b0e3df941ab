"""What a rule about a running attempt answers: a cause that ends it, or when to look again."""

from __future__ import annotations

from dataclasses import dataclass

from gemmatune_api.names import Reason
from gemmatune_operator.diagnose import Cause


@dataclass(frozen=True, slots=True)
class Outcome:
    """At most one of cause and wake is set."""

    cause: Cause | None = None
    wake: float | None = None
    """Seconds until the rule wants to be asked again."""
    gently: bool = False
    """Whether the trainer first saves a checkpoint, and the attempt is closed when its Job is gone."""


STOPPED = frozenset({Reason.DEADLINE_EXCEEDED, Reason.BUDGET_EXCEEDED, Reason.EVICTED_BY_QUEUE})
"""Reasons of an open attempt that the operator itself has asked to stop; it is closed when its Job is gone."""
GOES_ON = Outcome()
