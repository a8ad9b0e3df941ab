"""The wish to stop, by real signals: looked at, broken off at once, and timed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ENV_TERMINATION_LOG, ExitCode, Reason
from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.stop import SIGNALS, StopFlag
from tests.support.wait import wait_for


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


NATIVE = """
import hashlib, signal, sys
from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.__main__ import _end
from gemmatune_trainer.stop import StopFlag

stop = StopFlag()
stop.install(_end)
with stop.{context}:
    print("working", flush=True)
    hashlib.pbkdf2_hmac("sha512", b"a", b"b", 200_000_000)  # minutes of native code that gives Python's lock away
"""


@pytest.mark.parametrize(
    ("context", "least", "told"),
    [
        ("at_once('the compilation', 7)", 2, "SIGTERM came during the compilation: there is nothing new to save"),
        (
            "unheard(lambda waited: Interrupted('as late as this', step=7) if waited > 3 else None)",
            3,
            "as late as this",
        ),
    ],
)
def test_native_code_is_ended_from_beside(tmp_path: Path, context: str, least: float, told: str) -> None:
    """Its main thread runs no handler: a process that waited for it would be killed, without a word."""
    message = tmp_path / "termination"
    process = subprocess.Popen(
        [sys.executable, "-c", NATIVE.format(context=context)],
        env={**os.environ, ENV_TERMINATION_LOG: str(message)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    used = psutil.Process(process.pid).cpu_times
    before = used().user
    wait_for(lambda: used().user > before + 0.3, "native code to run: Python before it would hear of the signal")
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == ExitCode.INTERRUPTED
    assert least <= time.monotonic() - sent < 15
    found = from_text(message.read_text(), TerminationMessage)
    assert found is not None
    assert (found.message, found.step, found.reason) == (told, 7, Reason.INTERRUPTED)
