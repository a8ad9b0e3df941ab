"""What a rule about a running attempt answers: a cause that ends it, or when to look again."""

from __future__ import annotations

from dataclasses import dataclass

from gemmatune_operator.diagnose import Cause


@dataclass(frozen=True, slots=True)
class Outcome:
    """At most one of the two is set."""

    cause: Cause | None = None
    wake: float | None = None
    """Seconds until the rule wants to be asked again."""


GOES_ON = Outcome()
