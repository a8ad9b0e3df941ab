"""Liveness and the journal: when a process counts as dead, and what a change of a run leaves behind."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

import pytest
import structlog

from gemmatune_api.names import Phase, Reason
from gemmatune_api.status import Attempt, FineTuneStatus, Timers
from gemmatune_operator import health, probes
from gemmatune_operator.health import Health
from gemmatune_operator.journal import OTHER, Journal
from gemmatune_operator.observe import of_resource
from tests.support.situations import resource


class Work:
    """A queue as the probes see it."""

    oldest_work = oldest_wait = 0.0
    live_workers = idle_workers = 4


def working(**values: Any) -> Health:
    work = Work()
    for name, value in values.items():
        setattr(work, name, value)
    found = Health(work, 4)
    found.working = True
    return found


def test_idle_workers_are_healthy() -> None:
    assert working().complaint() is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"oldest_work": health.LOOK_SECONDS + 1}, "a look has taken 301 s"),
        ({"live_workers": 3, "idle_workers": 3}, "1 of 4 workers have died"),
        ({"oldest_wait": health.WAIT_SECONDS + 1}, "although a worker is free"),
    ],
)
def test_what_counts_as_dead(values: dict[str, Any], words: str) -> None:
    found = working(**values)
    assert words in (found.complaint() or "")
    found.working = False
    assert found.complaint() is None, "a standby has no workers"


def test_a_long_queue_is_no_death() -> None:
    assert working(oldest_wait=health.WAIT_SECONDS + 1, idle_workers=0).complaint() is None


def test_a_blocked_event_loop(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody beats: the complaint comes from another thread, and the log shows where the threads are, once."""
    found = working()
    found.working = False
    monkeypatch.setattr(health, "LOOP_SECONDS", -1.0)
    assert "the event loop has stood still" in (found.complaint() or "")
    assert found.complaint()
    assert capfd.readouterr().err.count("most recent call first") >= 1


def test_the_probe_server_answers() -> None:
    state: dict[str, str | None] = {"healthz": None, "readyz": "starting"}

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    server = probes.serving(
        "127.0.0.1", 0, alive=lambda: state["healthz"], ready=lambda: state["readyz"], scrape=lambda: b"x 1\n"
    )
    with server as port:
        assert ask("healthz") == (200, "ok\n")
        assert ask("readyz?verbose") == (503, "starting\n")
        state.update(healthz="a look has taken 301 s", readyz=None)
        assert ask("healthz") == (503, "a look has taken 301 s\n")
        assert ask("readyz") == (200, "ok\n")
        assert ask("metrics") == (200, "x 1\n")
        assert ask("secrets")[0] == 404
    began = time.monotonic()
    with pytest.raises(urllib.error.URLError):
        ask("healthz")
    assert time.monotonic() - began < 5


# --- the journal ---


class Meter:
    def __init__(self) -> None:
        self.ended: list[tuple[str, str, str, float, float]] = []

    def attempt_ended(self, namespace: str, cause: str, accelerator: str, seconds: float, cost: float) -> None:
        self.ended.append((namespace, cause, accelerator, seconds, cost))


def status(phase: Phase, active: float = 0.0, accelerator: Any = None, **attempt: Any) -> FineTuneStatus:
    attempts = [Attempt(number=1, job="quotes-t1", **attempt)] if attempt else []
    return FineTuneStatus(
        phase=phase.value,
        attempts=attempts,
        timers=Timers(active_seconds=active),
        resolved={"accelerator": accelerator or {"gpu": {"type": "nvidia-l4"}}},
    )


def test_an_ended_attempt_is_counted_once() -> None:
    meter = Meter()
    journal = Journal(meter)
    before = status(Phase.TRAINING, 100.0, start_time="2026-03-01T12:00:00Z")
    after = status(Phase.RETRYING, 160.0, start_time="x", end_time="2026-03-01T12:01:00Z", reason="Preempted")
    with structlog.testing.capture_logs() as lines:
        journal.changed("team", before, after)
        journal.changed("team", after, after)
    assert meter.ended == [("team", "Preempted", "nvidia-l4", 60.0, 0.0)]
    assert [(line["event"], line.get("before"), line.get("after")) for line in lines] == [
        ("attempt ended", None, None),
        ("transition", "Training", "Retrying"),
    ]


@pytest.mark.parametrize(
    ("accelerator", "label"),
    [
        ({"gpu": {"type": "made-up"}}, OTHER),
        ({"tpu": {"type": "tpu-v5-lite-podslice"}}, "tpu-v5-lite-podslice"),
        ({"cpu": {}}, "cpu"),
    ],
)
def test_labels_are_bounded(accelerator: Any, label: str) -> None:
    meter = Meter()
    end = {"end_time": "x", "reason": "Written by hand"}
    before = status(Phase.TRAINING, accelerator=accelerator, start_time="x")
    Journal(meter).changed("team", before, status(Phase.FAILED, **end))
    assert meter.ended == [("team", OTHER, label, 0.0, 0.0)]
    assert Reason.PREEMPTED.value == "Preempted"


def test_runs_by_phase() -> None:
    journal = Journal()
    for name, phase in (("a", "Training"), ("b", "Training"), ("c", ""), ("d", "Nonsense")):
        observed = of_resource(resource() | {"metadata": {"name": name, "namespace": "ns"}})
        journal.seen(observed, FineTuneStatus(phase=phase))
    counts = journal.phases()
    assert (counts["Training"], counts["Pending"], counts[OTHER], counts["Failed"]) == (2, 1, 1, 0)
    journal.forget("ns", "a")
    journal.forget("ns", "never seen")
    assert journal.phases()["Training"] == 1
    assert set(counts) == {phase.value for phase in Phase} | {OTHER}
