"""The process runner on real processes: signals, exit codes, adoption after its own death, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gemmatune_api.names import EXIT_REASONS, ExitCode
from gemmatune_cli.local import runner
from gemmatune_cli.local.runner import Process, ProcessId, ProcessRunner, ProcessSpec
from tests.support.wait import wait_for


def spec(folder: Path, program: str, **environment: str) -> ProcessSpec:
    return ProcessSpec(
        command=[sys.executable, "-c", program],
        environment=environment,
        directory=folder,
        log=folder / "logs" / "log",
        termination_log=folder / "message",
    )


def ended(process: Process) -> int:
    wait_for(lambda: process.poll() is not None, "the process's end")
    code = process.poll()
    assert code is not None
    return code


def says(folder: Path, text: str) -> Callable[[], bool]:
    return lambda: (folder / "logs" / "log").exists() and text in (folder / "logs" / "log").read_text()


def test_a_process_gets_exactly_its_environment_and_directory_and_its_output_goes_to_the_log(tmp_path: Path) -> None:
    program = "import os, sys; print(sorted(os.environ), os.getcwd()); print('oh', file=sys.stderr); sys.exit(13)"
    process = ProcessRunner().start(spec(tmp_path, program, WHAT="x", LC_CTYPE="C.UTF-8"))
    assert ended(process) == 13
    log = (tmp_path / "logs" / "log").read_text()
    assert f"['LC_CTYPE', 'WHAT'] {tmp_path}" in log
    assert "oh" in log


def test_it_has_a_session_of_its_own_so_that_ctrl_c_in_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    process = ProcessRunner().start(spec(tmp_path, "import time; time.sleep(60)"))
    try:
        assert os.getsid(process.id.pid) == process.id.pid != os.getsid(0)
    finally:
        process.kill()
    assert ended(process) == -signal.SIGKILL
    assert runner.container_exit_code(-signal.SIGKILL) == 137


CHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "


def members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_sigterm_reaches_the_trainer_alone_and_its_children_go_when_it_has_ended(tmp_path: Path) -> None:
    program = (
        CHILD + "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(30))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = ProcessRunner().start(spec(tmp_path, program))
    wait_for(says(tmp_path, "ready"), "its start")
    assert len(members(process.id.pid)) == 2
    process.terminate()
    assert ended(process) == 30
    wait_for(lambda: not members(process.id.pid), "the end of its child")


def test_kill_takes_the_whole_group_and_leaves_no_zombie(tmp_path: Path) -> None:
    process = ProcessRunner().start(spec(tmp_path, CHILD + "print('ready', flush=True); import time; time.sleep(60)"))
    wait_for(says(tmp_path, "ready"), "its start")
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert not psutil.pid_exists(process.id.pid)
    wait_for(lambda: not members(process.id.pid), "the end of its child")
    process.kill()
    process.terminate()
    assert process.poll() == -signal.SIGKILL


STARTER = """
import json, sys
from pathlib import Path
from dataclasses import asdict
from gemmatune_cli.local.runner import ProcessRunner, ProcessSpec
folder = Path(sys.argv[1])
spec = ProcessSpec([sys.executable, "-c", sys.argv[2]], {}, folder, folder / "logs" / "log", folder / "message")
process = ProcessRunner().start(spec)
(folder / "id.part").write_text(json.dumps(asdict(process.id)))
(folder / "id.part").rename(folder / "id")
import time; time.sleep(60)
"""


def orphan(folder: Path, program: str) -> ProcessId:
    """A process whose starter was killed."""
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(folder), program])
    wait_for((folder / "id").exists, "the start")
    starter.kill()
    starter.wait()
    return ProcessId(**json.loads((folder / "id").read_text()))


WAITS = """
import json, signal, sys, time
def stop(*_):
    open("message", "w").write(json.dumps({"reason": "Interrupted", "step": 3}))
    sys.exit(30)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_outlives_its_killed_starter_and_is_adopted(tmp_path: Path) -> None:
    process = ProcessRunner().adopt(orphan(tmp_path, WAITS), tmp_path / "message")
    wait_for(says(tmp_path, "ready"), "its start")
    assert process.poll() is None
    process.terminate()
    assert ended(process) == ExitCode.INTERRUPTED


def test_an_adopted_process_can_be_killed(tmp_path: Path) -> None:
    process = ProcessRunner().adopt(orphan(tmp_path, WAITS), tmp_path / "message")
    wait_for(says(tmp_path, "ready"), "its start")
    process.kill()
    assert ended(process) == -signal.SIGKILL


def test_another_process_of_the_same_number_is_never_taken_for_it(tmp_path: Path) -> None:
    process = ProcessRunner().start(spec(tmp_path, "import time; time.sleep(60)"))
    try:
        later = ProcessId(process.id.pid, process.id.start_time - 1, process.id.boot)
        assert runner.is_running(process.id)
        assert not runner.is_running(later)
        assert not runner.is_running(ProcessId(process.id.pid, process.id.start_time, "another boot"))
        adopted = ProcessRunner().adopt(later, tmp_path / "message")
        adopted.terminate()
        adopted.kill()
        assert adopted.poll() is not None
        assert process.poll() is None
    finally:
        process.kill()
        ended(process)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"manifest": "file:///out/manifest.json"}, ExitCode.DONE),
        ({"reason": "Completed", "manifest": "file:///out/manifest.json"}, ExitCode.DONE),
        ({"data": {"rows": 3}, "model": {"family": "gemma3_text"}}, ExitCode.DONE),
        ({"reason": "Unheard-of"}, ExitCode.CRASHED),
        ({}, ExitCode.CRASHED),
        (None, -signal.SIGKILL),
        *[({"reason": str(reason)}, code) for code, reason in EXIT_REASONS.items()],
    ],
)
def test_the_exit_code_of_a_process_that_nobody_waited_for_is_that_of_its_message(
    tmp_path: Path, message: dict[str, object] | None, code: int
) -> None:
    path = tmp_path / "message"
    if message is not None:
        path.write_text(json.dumps(message))
    assert runner.exit_code_of(path) == code


def test_a_message_cut_in_the_middle_means_killed(tmp_path: Path) -> None:
    (tmp_path / "message").write_text('{"reason": "Inter')
    assert runner.exit_code_of(tmp_path / "message") == -signal.SIGKILL


def test_the_end_of_the_log_stands_in_for_a_missing_message(tmp_path: Path) -> None:
    log, message = tmp_path / "log", tmp_path / "message"
    log.write_text("\n".join(f"line {number}" for number in range(200)))
    assert runner.termination_message(message) == ""
    assert runner.termination_message(message, log).splitlines()[-1] == "line 199"
    assert len(runner.termination_message(message, log).splitlines()) == runner.FALLBACK_LINES
    message.write_text("x" * 5000)
    assert len(runner.termination_message(message, log)) == runner.MESSAGE_BYTES
