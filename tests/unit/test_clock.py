"""The operator's clock: it follows the machine's, and takes in a jump slowly."""

from __future__ import annotations

from datetime import timedelta

import pytest
import structlog

from gemmatune_operator.clock import SLEW, SteadyClock
from tests.support.play import SPEC, Play
from tests.support.story import DONE

HOUR = 3600.0


class Machine:
    """A wall clock that jumps beside one that does not."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000_000.0, 50.0
        self.clock = SteadyClock(lambda: self.wall, lambda: self.steady)

    def pass_(self, seconds: float) -> float:
        self.wall += seconds
        self.steady += seconds
        return self.clock().timestamp()


def test_it_is_the_machines_clock() -> None:
    machine = Machine()
    for _ in range(100):
        assert machine.pass_(7.5) == pytest.approx(machine.wall)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_is_taken_in_slowly(jump: float) -> None:
    machine = Machine()
    machine.pass_(10)
    before = machine.clock().timestamp()
    machine.wall += jump
    with structlog.testing.capture_logs() as lines:
        assert machine.clock().timestamp() == pytest.approx(before)
        after = machine.pass_(60)
        machine.pass_(60)
    assert after - before == pytest.approx(60 + SLEW * 60 * (1 if jump > 0 else -1))
    assert [line["seconds"] for line in lines] == [jump], "told once"
    machine.pass_(HOUR / SLEW)
    assert machine.pass_(HOUR / SLEW) == pytest.approx(machine.wall), "it comes to agree"


def test_it_never_goes_back() -> None:
    machine = Machine()
    last = machine.clock().timestamp()
    for jump in (-HOUR, HOUR, -10 * HOUR, 0.0, -1.0):
        machine.wall += jump
        for _ in range(5):
            now = machine.pass_(1)
            assert now > last
            last = now


def test_a_corrected_jump_leaves_nothing() -> None:
    machine = Machine()
    machine.wall += HOUR
    machine.pass_(1)
    machine.wall -= HOUR
    assert machine.pass_(1) == pytest.approx(machine.wall, abs=SLEW)


def test_a_restart_with_a_clock_that_was_set_back() -> None:
    """Times of the status lie in the future: nothing ends, no time is counted twice, and the run goes on."""
    play = Play({**SPEC, "limits": {"deadline": "30m", "stallTimeout": "10m"}})
    play.training()
    play.wait(120)
    play.now -= timedelta(hours=1)
    play.restart()
    assert play.look().phase == "Training"
    play.trainer(progress={"step": 7, "totalSteps": 100})
    status = play.ends("quotes-t1", 30, {"message": "asked to stop", "step": 7})
    assert status.timers is not None
    assert 0 <= status.timers.active_seconds <= 120
    assert play.runs("quotes-t2").phase == "Training"
    assert play.ends("quotes-t2", 0, DONE).phase == "Succeeded"


def test_a_restart_with_a_clock_that_was_set_forward() -> None:
    """The stall clock starts anew with the process; the deadline is a time of the machine's clock, and holds."""
    play = Play({**SPEC, "limits": {"stallTimeout": "10m"}})
    play.training()
    play.trainer(progress={"step": 7, "totalSteps": 100})
    play.now += timedelta(hours=1)
    play.restart()
    assert play.look().phase == "Training"
    play.change(lambda spec: spec.update(limits={"deadline": "30m"}))
    assert "DeadlineExceeded" in (play.look().reason, *(attempt.reason for attempt in play.status.attempts))
