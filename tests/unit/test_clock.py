"""The operator's clock: it follows the machine's, and takes in a jump slowly."""

from __future__ import annotations

import pytest
import structlog

from gemmatune_operator.clock import SLEW, SteadyClock

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
