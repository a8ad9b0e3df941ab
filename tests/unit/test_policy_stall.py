"""stall: neither step nor heartbeat for too long, by the operator's clock."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gemmatune_api.names import Reason
from gemmatune_api.status import Progress
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.memory import Memory
from gemmatune_operator.observe import of_resource
from gemmatune_operator.policies.outcome import Outcome
from gemmatune_operator.policies.stall import stall
from tests.support.situations import NOW, attempt, decision, job, pod, resource, situation

MINUTE = 60


def look(quiet: float, step: int, from_step: int = 0, timeout: str = "15m", running: bool = True) -> Outcome:
    seen = situation(
        resource({"limits": {"stallTimeout": timeout}}), now=NOW + timedelta(seconds=quiet), still_since=NOW
    )
    current = attempt(training_time=rfc3339(NOW), from_step=from_step or None)
    view = job("quotes-t1", pod() if running else pod(phase="Pending"))
    return stall(seen, decision(progress=Progress(step=step)), current, view)


@pytest.mark.parametrize(
    ("quiet", "step", "from_step", "timeout", "ends"),
    [
        (15 * MINUTE - 1, 1, 0, "15m", False),
        (15 * MINUTE, 1, 0, "15m", True),
        (45 * MINUTE - 1, 0, 0, "15m", False),
        (45 * MINUTE, 0, 0, "15m", True),
        (45 * MINUTE - 1, 40, 40, "15m", False),
        (15 * MINUTE, 41, 40, "15m", True),
        (59 * MINUTE, 0, 0, "1h", False),
        (60 * MINUTE, 0, 0, "1h", True),
    ],
)
def test_stall(quiet: float, step: int, from_step: int, timeout: str, ends: bool) -> None:
    found = look(quiet, step, from_step, timeout)
    assert (found.cause is not None) == ends
    if found.cause is not None:
        assert found.cause.reason is Reason.STALLED
        assert f"step {step}" in found.cause.message
    else:
        assert found.wake is not None
        assert 0 < found.wake <= 45 * MINUTE / 4 + 4 * MINUTE


def test_only_running_attempts_stall() -> None:
    assert look(10_000, 5, running=False) == Outcome()
    waiting = situation(now=NOW + timedelta(hours=9), still_since=NOW)
    assert stall(waiting, decision(), attempt(), job("quotes-t1", pod())) == Outcome()


def test_the_clock_starts_with_the_attempt() -> None:
    began = NOW + timedelta(hours=3)
    seen = situation(now=began + timedelta(minutes=44), still_since=NOW)
    assert stall(seen, decision(), attempt(training_time=rfc3339(began)), job("quotes-t1", pod())).cause is None


def test_memory_notices_step_heartbeat_and_job() -> None:
    memory = Memory()

    def since(minute: int, **status: object) -> float:
        observed = of_resource(resource(status=status))
        now = NOW + timedelta(minutes=minute)
        return (memory.still_since(observed, now) - NOW).total_seconds() / MINUTE

    assert since(0, job="t1", progress={"step": 1, "heartbeat": "a"}) == 0
    assert since(5, job="t1", progress={"step": 1, "heartbeat": "a"}) == 0
    assert since(6, job="t1", progress={"step": 2, "heartbeat": "a"}) == 6
    assert since(7, job="t1", progress={"step": 2, "heartbeat": "b"}) == 7
    assert since(8, job="t2", progress={"step": 2, "heartbeat": "b"}) == 8
    assert since(9, job="t2", progress={"step": 2, "heartbeat": "b", "loss": 1.0}) == 8
    memory.forget("team", "quotes")
    assert since(10, job="t2", progress={"step": 2, "heartbeat": "b"}) == 10
