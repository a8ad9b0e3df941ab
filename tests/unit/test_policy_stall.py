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


def look(
    quiet: float,
    step: int,
    from_step: int = 0,
    timeout: str = "15m",
    running: bool = True,
    speed: float | None = 100.0,
    heard: float = 0.0,
) -> Outcome:
    """`heard`: when the heartbeat was written, in seconds after the attempt's start."""
    seen = situation(
        resource({"limits": {"stallTimeout": timeout}}), now=NOW + timedelta(seconds=quiet), still_since=NOW
    )
    current = attempt(training_time=rfc3339(NOW), from_step=from_step or None)
    view = job("quotes-t1", pod() if running else pod(phase="Pending"))
    heartbeat = rfc3339(NOW + timedelta(seconds=heard))
    said = Progress(step=step, tokens_per_second=speed, heartbeat=heartbeat)
    return stall(seen, decision(progress=said), current, view)


@pytest.mark.parametrize(
    ("quiet", "step", "from_step", "timeout", "ends"),
    [
        (15 * MINUTE - 1, 1, 0, "15m", False),
        (15 * MINUTE, 1, 0, "15m", True),
        (15 * MINUTE, 41, 40, "15m", True),
        (59 * MINUTE, 41, 40, "1h", False),
        (60 * MINUTE, 41, 40, "1h", True),
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


@pytest.mark.parametrize(
    ("step", "from_step", "speed", "heard"),
    [
        (0, 0, None, 1),
        (40, 40, None, 1),  # its first report: loaded, and about to compile
        (150, 100, None, 1),  # the same, where the bucket has a newer checkpoint than the status
        (150, 100, 90.0, -60),  # the attempt before had come further than its last checkpoint, and was killed
        (5, 0, 90.0, -60),  # and had none
        (100, 100, 90.0, -60),
    ],
)
def test_the_first_step_of_every_attempt_has_45_minutes(
    step: int, from_step: int, speed: float | None, heard: float
) -> None:
    for timeout, allowed in (("15m", 45 * MINUTE), ("1h", 60 * MINUTE)):
        before = look(allowed - 1, step, from_step, timeout, speed=speed, heard=heard)
        assert before.cause is None, timeout
        assert before.wake is not None
        assert before.wake <= 1
        over = look(allowed, step, from_step, timeout, speed=speed, heard=heard)
        assert over.cause is not None
        assert over.cause.reason is Reason.STALLED


def test_an_unreadable_heartbeat_is_nobodys() -> None:
    seen = situation(now=NOW + timedelta(minutes=44), still_since=NOW)
    said = Progress(step=5, tokens_per_second=1.0, heartbeat="x")
    assert stall(seen, decision(progress=said), attempt(training_time=rfc3339(NOW)), job("quotes-t1", pod())).wake


@pytest.mark.parametrize(("phase", "deleted", "ends"), [("Running", False, True), ("Running", True, False)])
def test_the_silence_of_what_is_left_of_several_pods(phase: str, deleted: bool, ends: bool) -> None:
    seen = situation(resource({"limits": {"stallTimeout": "15m"}}), now=NOW + timedelta(hours=9), still_since=NOW)
    left = pod(name="a", phase=phase, deleted=NOW if deleted else None)
    view = job("quotes-t1", left, pod(name="b", phase="Succeeded", exit_code=0), wanted=2)
    found = stall(seen, decision(progress=Progress(step=150)), attempt(training_time=rfc3339(NOW)), view)
    assert (found.cause is not None) == ends


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
