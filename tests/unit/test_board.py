"""Series of single runs: what they show, that they are few, and that they go with the resource."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gemmatune_operator import board as module
from gemmatune_operator.board import Board, Key, numbers
from gemmatune_operator.cache import Cache
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.metrics import Gauges, Metrics
from tests.support.situations import resource

NOW = datetime(2026, 3, 1, 13, tzinfo=UTC)
ATTEMPT = {"number": 1, "job": "quotes-t1", "startTime": "2026-03-01T12:00:00Z", "costPerHour": 1.5}
TRAINING = {
    "phase": "Training",
    "resolved": {"accelerator": {"gpu": {"type": "nvidia-l4"}}, "limits": {"maxRetries": 4}},
    "counters": {"retries": 5, "stalls": 1},
    "budgetBase": {"retries": 3},
    "attempts": [ATTEMPT],
    "timers": {"spent": 2.0},
    "cost": {"soFar": 2.25},
    "progress": {
        "step": 40,
        "totalSteps": 100,
        "loss": 1.5,
        "tokensPerSecond": 5000.0,
        "heartbeat": "2026-03-01T12:59:00Z",
        "historySteps": [10, 20],
    },
}


def run(name: str, version: int, **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {
        **resource(),
        "metadata": {**metadata, "creationTimestamp": "2026-03-01T11:00:00Z"},
        "status": status,
    }


def scrape(cache: Cache) -> str:
    gauges = Gauges(lambda: 0.0, lambda: 0.0, lambda: 1.0, dict, Board(cache.documents))
    return Metrics(gauges).text().decode()


def test_a_run_that_trains() -> None:
    cache = Cache()
    cache.resource("ADDED", run("quotes", 1, **TRAINING))
    (card,) = Board(cache.documents).cards(NOW).values()
    assert (card.accelerator, card.accelerators, card.price) == ("nvidia-l4", 1, 1.5)
    assert numbers(card, NOW) == {
        "step": 40.0,
        "total_steps": 100.0,
        "loss": 1.5,
        "tokens_per_second": 5000.0,
        "cost": 2.25,
        "stalls": 1.0,
        "retry_budget_used_ratio": 0.5,
        "heartbeat_age_seconds": 60.0,
    }


@pytest.mark.parametrize(
    ("phase", "since", "waits"),
    [
        ("Provisioning", "2026-03-01T12:30:00Z", 1800.0),
        ("Provisioning", None, 7200.0),
        ("", None, 7200.0),
        ("Suspended", None, None),
        ("Merging", None, None),
    ],
)
def test_a_run_that_waits(phase: str, since: str | None, waits: float | None) -> None:
    cache = Cache()
    timers = {"timers": {"pendingSince": since}} if since else {}
    cache.resource("ADDED", run("quotes", 1, **{**TRAINING, **timers, "phase": phase}))
    (card,) = Board(cache.documents).cards(NOW).values()
    found = numbers(card, NOW)
    assert found.get("pending_seconds") == waits
    assert not {"tokens_per_second", "heartbeat_age_seconds"} & set(found), "what it did before says nothing now"
    assert (card.accelerators, card.price) == (0, 0.0)


@pytest.mark.parametrize(
    ("phase", "status", "reason", "waits"),
    [
        ("Preparing", "False", "Preparing", None),
        ("Preparing", "False", "Unschedulable", 7200.0),
        ("Preparing", "False", "WaitingForAccess", 7200.0),
        ("Preparing", "True", "Prepared", None),
        ("Provisioning", "True", "Prepared", 60.0),
    ],
)
def test_a_preparation_at_work_does_not_wait(phase: str, status: str, reason: str, waits: float | None) -> None:
    """The run is two hours old; its preparation ended, where it has, a minute ago."""
    cache = Cache()
    prepared = {"type": "Prepared", "status": status, "reason": reason, "lastTransitionTime": "2026-03-01T12:59:00Z"}
    cache.resource("ADDED", run("quotes", 1, phase=phase, conditions=[prepared]))
    (card,) = Board(cache.documents).cards(NOW).values()
    assert numbers(card, NOW).get("pending_seconds") == waits


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"attempts": [{**ATTEMPT, "endTime": "2026-03-01T12:50:00Z"}]}, 600.0),
        (
            {"conditions": [{"type": "Suspended", "status": "False", "lastTransitionTime": "2026-03-01T12:58:00Z"}]},
            120.0,
        ),
    ],
)
def test_a_wait_begins_with_the_last_attempt_or_suspension(changes: dict[str, Any], waits: float) -> None:
    cache = Cache()
    cache.resource("ADDED", run("quotes", 1, **{**TRAINING, "phase": "Retrying", **changes}))
    (card,) = Board(cache.documents).cards(NOW).values()
    assert numbers(card, NOW)["pending_seconds"] == waits


def test_series_go_with_the_end_and_with_the_resource() -> None:
    cache = Cache()
    cache.resource("ADDED", run("quotes", 1, **TRAINING))
    cache.resource("ADDED", run("other", 2, **TRAINING))
    board = Board(cache.documents)
    gauges = Gauges(lambda: 0.0, lambda: 0.0, lambda: 1.0, dict, board)
    metrics = Metrics(gauges)
    assert 'gemmatune_accelerators_in_use{run_namespace="team",type="nvidia-l4"} 2.0' in metrics.text().decode()
    cache.resource("MODIFIED", run("other", 3, **{**TRAINING, "phase": "Succeeded"}))
    text = metrics.text().decode()
    assert 'run="quotes"' in text
    assert 'run="other"' not in text
    assert 'gemmatune_cost_per_hour{run_namespace="team"} 1.5' in text
    cache.resource("DELETED", run("quotes", 4, **TRAINING))
    text = metrics.text().decode()
    assert 'run="' not in text
    assert 'gemmatune_cost_per_hour{run_namespace="team"} 0.0' in text


STALLED = {**TRAINING, "phase": "Failed", "reason": "Stalled", "counters": {"retries": 5, "stalls": 2}}


def finished(minutes: float) -> dict[str, Any]:
    """The condition of a run that ended so long before NOW."""
    time = rfc3339(NOW - timedelta(minutes=minutes))
    return {"conditions": [{"type": "Finished", "status": "True", "reason": "Stalled", "lastTransitionTime": time}]}


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ({**STALLED, **finished(0)}, {"stalls": 2.0}),
        ({**STALLED, **finished(59)}, {"stalls": 2.0}),
        ({**STALLED, **finished(60)}, None),
        ({**STALLED, **finished(1), "counters": {"stalls": 0}}, None),
        ({**STALLED, **finished(1), "counters": None}, None),
        ({**STALLED, **finished(1), "phase": "Succeeded"}, {"stalls": 2.0}),
        (STALLED, None),
    ],
)
def test_the_stalls_of_a_run_are_shown_for_an_hour_after_its_end(
    status: dict[str, Any], shown: dict[str, float] | None
) -> None:
    cache = Cache()
    cache.resource("ADDED", run("quotes", 1, **status))
    found = [numbers(card, NOW) for card in Board(cache.documents).cards(NOW).values()]
    assert found == ([] if shown is None else [shown])


def test_runs_that_have_ended_take_no_series_of_those_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmatune_operator.metrics.RUNS", 2)
    cache = Cache()
    for number, status in enumerate(({**STALLED, **finished(1)}, TRAINING, {**STALLED, **finished(2)}, TRAINING)):
        cache.resource("ADDED", run(f"run-{number}", number + 1, **status))
    gauges = Gauges(lambda: 0.0, lambda: 0.0, lambda: 1.0, dict, Board(cache.documents), lambda: NOW)
    text = Metrics(gauges).text().decode()
    shown = re.findall(r'gemmatune_run_stalls_total{run="(.*?)"', text)
    assert shown == ["run-1", "run-3"]
    assert 'gemmatune_accelerators_in_use{run_namespace="team",type="nvidia-l4"} 2.0' in text


def test_a_scrape_reads_only_what_has_changed() -> None:
    looked_at: list[str] = []

    class Text(bytes):
        def decode(self, *_: Any) -> str:
            looked_at.append("read")
            return super().decode()

    text = Text(json.dumps(run("quotes", 7, **TRAINING)).encode())
    known: list[tuple[Key, int, bytes]] = [(("team", "quotes"), 7, text)]
    board = Board(lambda: known)
    first = board.cards(NOW)
    assert board.cards(NOW) == first
    assert len(looked_at) == 1
    known[0] = (("team", "quotes"), 8, text)
    board.cards(NOW)
    assert len(looked_at) == 2


def test_series_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmatune_operator.metrics.RUNS", 3)
    monkeypatch.setattr(module, "NAMESPACES", 2)
    cache = Cache()
    for number in range(6):
        item = run(f"run-{number}", number + 1, **TRAINING)
        item["metadata"]["namespace"] = f"team-{number}"
        cache.resource("ADDED", item)
    text = scrape(cache)
    assert text.count("gemmatune_run_loss{") == 3
    assert 'gemmatune_accelerators_in_use{run_namespace="other",type="nvidia-l4"} 4.0' in text
    assert text.count("gemmatune_cost_per_hour{") == 3


@pytest.mark.parametrize("status", [{"resolved": {"limits": {"maxRetries": "3"}}}, {"phase": 7}, {"resolved": []}])
def test_what_a_hand_has_written_is_no_error(status: dict[str, Any]) -> None:
    cache = Cache()
    cache.resource("ADDED", run("quotes", 1, **status))
    assert 'gemmatune_run_stalls_total{run="quotes",run_namespace="team"} 0.0' in scrape(cache)
