"""The wish to stop, by real signals: looked at, broken off at once, and timed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.stop import SIGNALS, StopFlag


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


def test_work_that_cannot_look_is_broken_off(stop: StopFlag) -> None:
    """Also where a library takes every exception for its own."""
    entered = threading.Event()

    def send() -> None:
        entered.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    deadline = time.monotonic() + 60

    def library() -> None:
        while time.monotonic() < deadline:
            try:
                entered.set()
            except Exception:  # noqa: BLE001 - as a library would
                continue

    with pytest.raises(Interrupted, match="SIGTERM came during the reload") as caught, stop.at_once("the reload", 7):
        library()
    assert caught.value.step == 7
    assert time.monotonic() < deadline
    with pytest.raises(Interrupted, match="came before the next thing"), stop.at_once("the next thing"):
        pytest.fail("nothing begins after the signal")


def test_outside_a_signal_only_raises_the_flag(stop: StopFlag) -> None:
    with stop.at_once("something"):
        assert not stop.requested
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.raised
    assert stop.by == "SIGINT", "the first one counts"
    assert 0 < stop.left(15) <= 15
    assert stop.left(0) == 0
    with pytest.raises(Interrupted, match="SIGINT came before loading"):
        stop.check("loading")


def test_a_look_is_a_sign_of_life_but_waiting_is_none(stop: StopFlag) -> None:
    looks: list[None] = []
    stop.looked = lambda: looks.append(None)
    assert not stop.raised
    assert not looks
    assert not stop.requested
    assert len(looks) == 1
