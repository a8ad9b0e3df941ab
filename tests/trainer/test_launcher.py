"""The launcher with stand-ins for the trainer: the pod has the exit code and the message of the process that counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmatune_api.layout import Layout
from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG, ExitCode, Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_operator.manifests import launch
from gemmatune_trainer.launcher import Child, Family
from tests.support.trainerhost import TrainerHost
from tests.support.wait import wait_for
from tests.trainer.test_run import attempt, output, prepared

STAND_IN = """
import json, os, signal, sys, time
rank = int(os.environ["RANK"])

def end(code, *_):
    with open(os.environ["GEMMATUNE_TERMINATION_LOG"], "w") as file:
        json.dump({"reason": f"Code{code}", "message": f"rank {rank}"}, file)
    sys.stdout.flush()
    os._exit(code)

def killed(code):
    os.kill(os.getpid(), signal.SIGKILL)

signal.signal(signal.SIGTERM, lambda *_: end(30))
open(f"up-{rank}", "w").close()
what = json.loads(os.environ["WHAT"])[rank]
if what is None:
    while True:
        time.sleep(0.05)
after, code = what
time.sleep(after)
killed(code) if code < 0 else end(code)
"""


def start(folder: Path, what: str) -> subprocess.Popen[bytes]:
    """A pod of two processes; `what`: for each (seconds, exit code), or null for one that waits."""
    (folder / "standin.py").write_text(STAND_IN)
    code = (
        "import sys; from gemmatune_trainer import launcher; launcher.TRAINER_MODULE = 'standin'; "
        "launcher.GRACE_SECONDS = 1.0; sys.exit(launcher.main(['--per-node', '2', 'train']))"
    )
    env = {**os.environ, "WHAT": what, "PYTHONPATH": str(folder), ENV_TERMINATION_LOG: str(folder / "log")}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=env)


def said(folder: Path) -> str:
    found = from_text((folder / "log").read_text(), TerminationMessage)
    assert found is not None
    return found.message


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("[[0, 0], [0.3, 0]]", 0, "rank 0"),
        ("[[0.3, 0], [0, 0]]", 0, "rank 0"),
        ("[[0, 21], [0.2, 21]]", 21, "rank 0"),
        ("[null, [0, 20]]", 20, "rank 1"),  # the other waits for it: it is ended
        ("[[0, 1], [0.3, 20]]", 20, "rank 1"),  # rank 0 only lost its connection
        ("[[0.3, 1], [0, 1]]", 1, "rank 1"),
        ("[[0, 0], null]", 0, "rank 0"),
    ],
)
def test_who_speaks_for_the_pod(tmp_path: Path, what: str, code: int, message: str) -> None:
    assert start(tmp_path, what).wait(60) == code
    assert said(tmp_path) == message


def test_a_killed_process_leaves_no_message(tmp_path: Path) -> None:
    assert start(tmp_path, "[null, [0, -9]]").wait(60) == 128 + signal.SIGKILL
    assert not (tmp_path / "log").exists()


def test_a_killed_process_speaks_before_one_that_lost_its_connection_to_it(tmp_path: Path) -> None:
    """Also where both have ended before anybody looks."""
    crashed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    killed = subprocess.Popen(["sleep", "60"])
    killed.kill()
    assert (crashed.wait(60), killed.wait(60)) == (1, -signal.SIGKILL)
    children = [Child(0, crashed, tmp_path / "0"), Child(1, killed, tmp_path / "1")]
    assert Family(children, several_pods=False).watch().code == 128 + signal.SIGKILL


def test_the_pods_sigterm_reaches_all(tmp_path: Path) -> None:
    pod = start(tmp_path, "[null, null]")
    wait_for(lambda: all((tmp_path / f"up-{rank}").exists() for rank in (0, 1)), "both processes", seconds=60)
    began = time.monotonic()
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(60) == 30
    assert time.monotonic() - began < 30
    assert said(tmp_path) == "rank 0"


def real(config: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    """The pod's own command on two processes."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        ENV_RUN: config.to_env(),
        ENV_TERMINATION_LOG: str(folder / "log"),
        ENV_STATUS_FILE: str(folder / "status.json"),
    }
    command = [sys.executable, *launch.launcher("quotes-t1", Layout(1, 2, replicas=2), 60)[1:]]
    with (folder / "stderr").open("wb") as log:
        return subprocess.Popen(command, env=env, stderr=log)


def stepped(folder: Path) -> bool:
    return '"event": "step"' in (folder / "stderr").read_text()


def test_a_pod_of_two_processes_ends_as_the_contract_says(
    make_config: Callable[..., RunConfig], trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """SIGTERM to the pod: exit 30 after a checkpoint, with rank 0's message. A process that is lost ends it, too."""
    config = prepared(trainer_host, make_config(max_steps=5000, every_steps=10_000), tmp_path / "p")
    pod = real(config, tmp_path)
    wait_for(lambda: stepped(tmp_path), "a step", seconds=300, detail=(tmp_path / "stderr").read_text)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(120) == ExitCode.INTERRUPTED, (tmp_path / "stderr").read_text()
    found = from_text((tmp_path / "log").read_text(), TerminationMessage)
    assert found is not None
    assert found.reason == Reason.INTERRUPTED
    assert f"the checkpoint of step {found.step} is saved" in found.message
    assert (output(config) / "checkpoints" / f"step-{found.step:08d}" / "manifest.json").exists()
    (tmp_path / "log").unlink()
    pod = real(attempt(config, 2), tmp_path)
    wait_for(lambda: stepped(tmp_path), "a step", seconds=300, detail=(tmp_path / "stderr").read_text)
    children = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    assert pod.wait(120) == 128 + signal.SIGKILL, (tmp_path / "stderr").read_text()
