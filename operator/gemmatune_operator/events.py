"""Events of a run: one for every transition of a condition, and none twice."""

from __future__ import annotations

from dataclasses import dataclass

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Condition, FineTuneStatus
from gemmatune_operator import conditions

NORMAL, WARNING = "Normal", "Warning"
MESSAGE_BYTES = 1024
"""The API server refuses an Event with a longer message; it counts bytes, not characters."""

_SHOWN = tuple(kind for kind in ConditionType if kind is not ConditionType.FINISHED)
_ORDINARY = {
    Reason.VALID,
    Reason.PREPARING,
    Reason.PREPARED,
    Reason.QUEUED,
    Reason.PROVISIONING,
    Reason.RUNNING,
    Reason.RETRYING,
    Reason.SUSPENDING,
    Reason.SUSPENDED,
    Reason.RESUMED,
    Reason.MERGING,
    Reason.COMPLETED,
}


@dataclass(frozen=True, slots=True)
class RunEvent:
    """An Event to record."""

    type: str
    reason: str
    message: str


def transitions(before: FineTuneStatus, after: FineTuneStatus) -> list[RunEvent]:
    """What changed, as Events; several conditions that say the same give one."""
    found: list[RunEvent] = []
    for kind in _SHOWN:
        old, new = conditions.find(before.conditions, kind), conditions.find(after.conditions, kind)
        if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
            continue
        event = _event(new)
        if event.message and all(event.message != other.message for other in found):
            found.append(event)
    return found


def _event(condition: Condition) -> RunEvent:
    retrying = condition.reason == Reason.RETRYING
    ordinary = condition.reason in _ORDINARY and not retrying
    return RunEvent(NORMAL if ordinary else WARNING, condition.reason, shortened(condition.message))


def shortened(message: str) -> str:
    """A message within what an Event may carry, cut between two characters."""
    raw = message.encode()
    if len(raw) <= MESSAGE_BYTES:
        return message
    return raw[: MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
