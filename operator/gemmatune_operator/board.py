"""What metrics show of single runs and namespaces: a few numbers of each, as the watches have brought them.

Series are bounded: only runs that have not ended have some, at most RUNS of them, and they go with the resource.
The stalls of a run are shown for a while after its end: the look that counts the last one also ends the run, and no
scrape before it can have seen that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gemmatune_api import accelerators
from gemmatune_api.names import ConditionType, Phase, Reason
from gemmatune_api.status import FineTuneStatus, Progress
from gemmatune_operator.conditions import find, parse_time
from gemmatune_operator.observe import open_attempt, status_of
from gemmatune_operator.views import mapping

RUNS = 1000
"""Runs that have series of their own; those that were there first."""
AFTERWARDS = timedelta(hours=1)
"""How long the stalls of an ended run are shown: as long as the alert looks back."""
NAMESPACES = 500
"""Namespaces that are named; what lies in others counts as OTHER."""
OTHER = "other"
"""Label for what a hand-written status may hold, and for what is too much: labels of metrics stay few."""
_ENDED = (Phase.SUCCEEDED, Phase.FAILED)
_WAITING = (Phase.PENDING, Phase.QUEUED, Phase.PROVISIONING, Phase.RETRYING)

Key = tuple[str, str]
"""Namespace and name of a run."""


@dataclass(frozen=True, slots=True)
class Card:
    """The numbers of a run; None where there is none."""

    accelerator: str
    accelerators: int
    """How many train now."""
    price: float
    """Of all of them an hour."""
    numbers: Mapping[str, float]
    """By the name of the metric without its beginning."""
    waiting_since: datetime | None
    heartbeat: datetime | None
    ended: datetime | None = None
    """When the run ended; its numbers are then its stalls alone."""


class Board:
    """The cards of the runs, made at a scrape from what has changed since the one before.

    Args:
        documents: key, version and JSON of every run; called from the probes' thread.
    """

    def __init__(self, documents: Callable[[], Iterable[tuple[Key, int, bytes]]]) -> None:
        self._documents = documents
        self._cards: dict[Key, tuple[int, Card | None]] = {}
        self._namespaces: dict[str, None] = {}
        self._lock = threading.Lock()

    def cards(self, now: datetime) -> dict[Key, Card]:
        """The cards of the runs that have not ended, then those of runs that have lately, where they stalled."""
        with self._lock:
            found: dict[Key, tuple[int, Card | None]] = {}
            for key, version, text in self._documents():
                self.namespace(key[0])
                old = self._cards.get(key)
                found[key] = old if old is not None and 0 < version == old[0] else (version, _card(json.loads(text)))
            self._cards = found
        cards = {key: card for key, (_, card) in found.items() if card is not None}
        going = {key: card for key, card in cards.items() if card.ended is None}
        lately = {key: card for key, card in cards.items() if card.ended and now - card.ended < AFTERWARDS}
        return {**going, **lately}

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that have had runs, as labels."""
        return list(self._namespaces)[:NAMESPACES]

    def namespace(self, name: str) -> str:
        """A namespace as a label."""
        self._namespaces.setdefault(name)
        if len(self._namespaces) <= NAMESPACES:
            return name
        return name if name in self.namespaces else OTHER


def numbers(card: Card, now: datetime) -> dict[str, float]:
    """The numbers of a card, with ages in seconds."""
    ages = {"pending_seconds": card.waiting_since, "heartbeat_age_seconds": card.heartbeat}
    old = {name: max(0.0, (now - then).total_seconds()) for name, then in ages.items() if then is not None}
    return {**card.numbers, **old}


def accelerators_of(status: FineTuneStatus) -> tuple[str, int]:
    """Type and number of the accelerators of an attempt; types are those of the catalog (cpu: pods)."""
    asked = mapping(mapping(status.resolved).get("accelerator"))
    for kind, known in (("gpu", accelerators.gpu), ("tpu", accelerators.tpu)):
        block = asked.get(kind)
        if isinstance(block, dict):
            label = str(block.get("type") or "")
            return (label if known(label) else OTHER), status.plan.chips if status.plan else 1
    return "cpu", status.plan.hosts if status.plan else 1


def _card(body: Mapping[str, Any]) -> Card | None:
    """The card of a run; None where it has ended without a stall."""
    status = status_of(body.get("status"))
    if status.phase in _ENDED:
        return _last_card(status)
    progress = status.progress or Progress()
    phase = status.phase or Phase.PENDING
    trains = phase == Phase.TRAINING
    kind, count = accelerators_of(status)
    attempt = open_attempt(status)
    price = attempt.cost_per_hour if attempt is not None and attempt.cost_per_hour is not None else 0.0
    shown = {
        "step": progress.step if progress.total_steps else None,
        "total_steps": progress.total_steps or None,
        "loss": progress.loss,
        "eval_loss": progress.eval_loss,
        "tokens_per_second": progress.tokens_per_second if trains else None,
        "cost": status.cost.so_far if status.cost else None,
        "stalls": status.counters.stalls if status.counters else 0,
        "retry_budget_used_ratio": _budget(status),
    }
    return Card(
        accelerator=kind,
        accelerators=count if trains else 0,
        price=price if trains else 0.0,
        numbers={name: float(value) for name, value in shown.items() if value is not None},
        waiting_since=_since(status, body) if _waits(status, phase) else None,
        heartbeat=parse_time(progress.heartbeat) if trains else None,
    )


def _last_card(status: FineTuneStatus) -> Card | None:
    """The card of a run that has ended: its stalls, where it has any."""
    stalls = status.counters.stalls if status.counters else 0
    finished = find(status.conditions, ConditionType.FINISHED)
    ended = parse_time(finished.last_transition_time) if finished is not None else None
    if not stalls or ended is None:
        return None
    kind, _ = accelerators_of(status)
    return Card(kind, 0, 0.0, {"stalls": float(stalls)}, waiting_since=None, heartbeat=None, ended=ended)


def _waits(status: FineTuneStatus, phase: str) -> bool:
    """Whether a run waits for something; a preparation that checks and reads is at work."""
    if phase != Phase.PREPARING:
        return phase in _WAITING
    prepared = find(status.conditions, ConditionType.PREPARED)
    return prepared is not None and prepared.status == "False" and prepared.reason != Reason.PREPARING


def _since(status: FineTuneStatus, body: Mapping[str, Any]) -> datetime | None:
    """When a run that waits began to."""
    if status.timers is not None and (since := parse_time(status.timers.pending_since)) is not None:
        return since
    suspended, prepared = (find(status.conditions, kind) for kind in (ConditionType.SUSPENDED, ConditionType.PREPARED))
    times = [
        mapping(body.get("metadata")).get("creationTimestamp"),
        suspended.last_transition_time if suspended is not None else None,
        prepared.last_transition_time if prepared is not None and prepared.status == "True" else None,
        *(attempt.end_time for attempt in status.attempts),
    ]
    return max((time for text in times if (time := parse_time(text)) is not None), default=None)


def _budget(status: FineTuneStatus) -> float | None:
    """The share of limits.maxRetries that is used up; None where there is no such budget."""
    limit = mapping(mapping(status.resolved).get("limits")).get("maxRetries")
    if not isinstance(limit, int) or limit <= 0:
        return None
    used = status.counters.retries if status.counters else 0
    return max(0, used - (status.budget_base.retries if status.budget_base else 0)) / limit
