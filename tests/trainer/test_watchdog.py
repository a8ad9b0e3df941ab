"""A process that hangs ends by itself with code 31 and its stacks; one that works for long without steps does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG, ExitCode, Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.watchdog import Watchdog
from tests.support.trainerhost import TrainerHost

LIMIT, PATIENCE = 100.0, 1000.0


class Watched:
    """A watchdog over a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heartbeats = 0
        self.ends: list[tuple[float, str, int | None]] = []
        self.dog = Watchdog(LIMIT, self._alive, lambda *end: self.ends.append(end), lambda: self.now, PATIENCE)

    def _alive(self) -> None:
        self.heartbeats += 1

    def after(self, seconds: float) -> list[tuple[float, str, int | None]]:
        self.now += seconds
        self.dog.look()
        return self.ends


def test_the_first_step_has_longer() -> None:
    watched = Watched()
    assert watched.after(PATIENCE - 1) == []
    assert watched.after(1) == [(PATIENCE, "", None)]


def test_after_the_first_step_the_limit_holds() -> None:
    watched = Watched()
    watched.dog.stepped(1)
    assert watched.after(LIMIT - 1) == []
    watched.dog.beat()
    assert watched.after(LIMIT - 1) == []
    assert watched.after(1) == [(LIMIT, "", 1)]


def test_a_look_at_the_stop_flag_is_a_sign_of_life() -> None:
    watched, stop = Watched(), StopFlag()
    stop.looked = watched.dog.beat
    watched.dog.stepped(1)
    for _ in range(9):
        watched.now += LIMIT / 2
        stop.check("the next sample")
        assert watched.after(LIMIT / 3) == []
    assert watched.heartbeats == 9


def test_heartbeats_are_no_flood() -> None:
    watched = Watched()
    for _ in range(1000):
        watched.now += 0.01
        watched.dog.beat()
    assert 9 <= watched.heartbeats <= 10


def test_long_work_is_told_of_and_bounded() -> None:
    watched = Watched()
    watched.dog.stepped(7)
    with watched.dog.patiently("saving a checkpoint"):
        told = watched.heartbeats
        for _ in range(9):
            assert watched.after(LIMIT) == []
        assert watched.heartbeats == told + 9, "the operator has no reason to end it"
        assert watched.after(LIMIT) == [(PATIENCE, "saving a checkpoint", 7)]
    assert watched.dog.rest() == LIMIT


def test_a_limit_above_the_patience_holds_everywhere() -> None:
    watched = Watched()
    generous = Watchdog(5000.0, lambda: None, clock=lambda: watched.now, patience=PATIENCE)
    assert generous.rest() == 5000


HANGS = """
import os, threading
import gemmatune_trainer.run as run
from gemmatune_trainer.__main__ import main

inner = run.Attempt.step_done

def hangs_in_a_dead_lock(self, step):
    inner(self, step)
    if step.number == 2:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

run.Attempt.step_done = hangs_in_a_dead_lock
os._exit(main(["train"]))
"""

NATIVE = """
import ctypes
import gemmatune_trainer.watchdog as watchdog

watchdog.LOCKED_SECONDS = 1.0

def hangs_with_the_interpreter_locked():
    ctypes.PyDLL(None).sleep(100)

dog = watchdog.Watchdog(1.0, lambda: None, patience=1.0)
dog.start()
dog._stopped.wait(0.5)
hangs_with_the_interpreter_locked()
"""


@pytest.mark.timeout(300)
def test_a_run_that_hangs_in_a_step_ends_as_stalled(
    make_config: Callable[..., RunConfig], trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """The real trainer with its main thread in a dead lock: exit 31, the step reached, all stacks in the log."""
    config = make_config()
    assert trainer_host.run("prepare", config, tmp_path / "prepare").poll() == ExitCode.DONE
    watched = config.model_copy(update={"stall_seconds": 10})
    env = {
        **os.environ,
        ENV_RUN: watched.to_env(),
        ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        ENV_STATUS_FILE: str(tmp_path / "status.json"),
    }
    done = subprocess.run([sys.executable, "-c", HANGS], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.STALLED, done.stderr[-3000:]
    message = from_text((tmp_path / "termination").read_text(), TerminationMessage)
    assert message is not None
    assert (message.reason, message.step) == (Reason.STALLED, 2)
    assert "at step 2" in message.message
    assert "in hangs_in_a_dead_lock" in done.stderr
    assert "in after_step" in done.stderr, "the whole stack of the main thread"
    assert done.stderr.count("hread 0x") >= 2, "and those of the others"


@pytest.mark.timeout(120)
def test_native_code_that_locks_the_interpreter(tmp_path: Path) -> None:
    """No Python code can run then: the stacks are left all the same, and the process ends."""
    done = subprocess.run([sys.executable, "-c", NATIVE], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CRASHED
    assert "in hangs_with_the_interpreter_locked" in done.stderr
