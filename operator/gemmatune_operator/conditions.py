"""Conditions of a run, and times as Kubernetes writes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Condition

MESSAGE_CHARACTERS = 2000
_ORDER = {kind.value: position for position, kind in enumerate(ConditionType)}


def rfc3339(moment: datetime) -> str:
    """A time as Kubernetes writes it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str | None) -> datetime | None:
    """The time in an RFC 3339 text; None where there is none or it cannot be read."""
    try:
        moment = datetime.fromisoformat(text or "")
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def find(conditions: Sequence[Condition], kind: ConditionType) -> Condition | None:
    """The condition of a type."""
    return next((condition for condition in conditions if condition.type == kind), None)


def is_true(conditions: Sequence[Condition], kind: ConditionType) -> bool:
    """Whether the condition of a type is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"


def has(conditions: Sequence[Condition], kind: ConditionType, status: str, reason: Reason) -> bool:
    """Whether the condition of a type has this status and reason."""
    condition = find(conditions, kind)
    return condition is not None and (condition.status, condition.reason) == (status, reason)


def put(
    conditions: Sequence[Condition],
    kind: ConditionType,
    status: bool,
    reason: Reason,
    message: str,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """The conditions with one of them set; its transition time moves only when its status changes."""
    old = find(conditions, kind)
    text = "True" if status else "False"
    since = old.last_transition_time if old is not None and old.status == text else rfc3339(now)
    new = Condition(
        type=kind.value,
        status=text,
        reason=reason.value,
        message=message[:MESSAGE_CHARACTERS],
        last_transition_time=since,
        observed_generation=generation,
    )
    others = [condition for condition in conditions if condition.type != kind]
    return sorted([*others, new], key=lambda condition: _ORDER.get(condition.type, len(_ORDER)))
