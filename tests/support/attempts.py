"""One look of the policy `attempt` at an attempt that trains, for its tests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from gemmatune_api.names import ConditionType
from gemmatune_api.status import (
    Counters,
)
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision
from gemmatune_operator.policies.attempt import attempt
from gemmatune_operator.views import JobView
from tests.support.situations import (
    NOW,
    decision,
    situation,
)
from tests.support.situations import attempt as an_attempt

C = ConditionType
ONE = Counters(attempts=1)


def created(found: Decision) -> list[str]:
    return [item["metadata"]["name"] for item in found.create if item["kind"] == "Job"]


def running(**fields: Any) -> Decision:
    """An attempt that trains."""
    own = {"start_time": rfc3339(NOW), "training_time": rfc3339(NOW), **fields.pop("attempt", {})}
    return decision(an_attempt(**own), true=(C.TRAINING,), **{"counters": ONE, "job": "quotes-t1", **fields})


def look(found: Decision, *jobs: JobView, seconds: float = 0, **fields: Any) -> Decision:
    return attempt(situation(now=NOW + timedelta(seconds=seconds), jobs=jobs, **fields), found)
