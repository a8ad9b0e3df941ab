"""Runs a pod's command as a process of this machine: the kubelet's part in `gft run` and in the tests' node agent.

A trainer gets a session of its own, so that Ctrl-C in the terminal reaches gft alone, which then asks the trainer to
stop. It is deliberately not tied to the life of gft (no PR_SET_PDEATHSIG): when gft is killed, the trainer goes on
and saves its work, and the next `gft run` adopts it by process id and start time. (PR_SET_PDEATHSIG would also follow
the thread that started the process, not gft.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.names import EXIT_REASONS, ExitCode

MESSAGE_BYTES = 4096
"""Where the kubelet cuts a termination message."""
FALLBACK_BYTES, FALLBACK_LINES = 2048, 80
"""What the kubelet takes of the log when a failed container wrote no message (FallbackToLogsOnError)."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run, where, and where its traces go."""

    command: Sequence[str]
    """Program and arguments; the program is looked up in the environment's PATH."""
    environment: Mapping[str, str]
    """The whole environment; nothing of gft's own is added."""
    directory: Path
    """Working directory."""
    log: Path
    """File that standard output and error are appended to."""
    termination_log: Path
    """File in which the process leaves its termination message."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    """Process number; also that of its session and process group."""
    start_time: int
    """Start in clock ticks since boot (field 22 of /proc/PID/stat)."""
    boot: str
    """The kernel's boot id."""


class Process(Protocol):
    """A process that was started or adopted."""

    id: ProcessId

    def poll(self) -> int | None:
        """Exit code, minus the signal's number where a signal ended it; None while it runs."""

    def terminate(self) -> None:
        """Sends SIGTERM to the process, not to its children, as the kubelet does."""

    def kill(self) -> None:
        """Sends SIGKILL to the process and all of its session's first group."""


class ProcessRunner:
    """Starts processes and finds those that an earlier runner left running."""

    def start(self, spec: ProcessSpec) -> Process:
        """Starts a process.

        Raises:
            OSError: the program, the directory or the log cannot be opened.
        """
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        spec.termination_log.parent.mkdir(parents=True, exist_ok=True)
        with spec.log.open("ab") as log:
            return _Child(_popen(spec, log))

    def adopt(self, process: ProcessId, termination_log: Path) -> Process:
        """A process that an earlier runner started; one that has ended since then gives its exit code at once."""
        return _Adopted(process, termination_log)


def _popen(spec: ProcessSpec, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(spec.command),
        env=dict(spec.environment),
        cwd=spec.directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


class _Child:
    """A process of this program, which waits for it: no zombie is left."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        # A child that has ended stays in /proc until it is waited for, so its start time can always be read.
        self.id = ProcessId(popen.pid, _start_time(popen.pid) or 0, _boot())

    def poll(self) -> int | None:
        if self._popen.returncode is None and os.waitid(
            os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            # Its number is still taken until it is waited for: what it left behind in its group ends with it.
            _signal_group(self._popen.pid)
        return self._popen.poll()

    def terminate(self) -> None:
        self._popen.terminate()

    def kill(self) -> None:
        if self._popen.returncode is None:
            _signal_group(self._popen.pid)


class _Adopted:
    """A process that an earlier gft started: it can be looked at and signalled, but not waited for."""

    def __init__(self, process: ProcessId, termination_log: Path) -> None:
        self.id = process
        self._termination_log = termination_log
        self._killed = False
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and not is_running(self.id):
            self._code = -signal.SIGKILL if self._killed else exit_code_of(self._termination_log)
        return self._code

    def terminate(self) -> None:
        if is_running(self.id):
            _signal(self.id.pid, signal.SIGTERM)

    def kill(self) -> None:
        if is_running(self.id):
            self._killed = True
            _signal_group(self.id.pid)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended in between
        os.kill(pid, number)


def _signal_group(group: int) -> None:
    # It ended in between; a number that came back in use is somebody else's.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def is_running(process: ProcessId) -> bool:
    """Whether exactly this process runs; a zombie does not."""
    return process.boot == _boot() and _start_time(process.pid, zombies=False) == process.start_time


def exit_code_of(termination_log: Path) -> int:
    """Exit code of a trainer that nobody waited for, by the termination message that it left.

    A success names its manifest or what it prepared; a failure names the reason that belongs to its exit code. No
    readable message means that it was killed.
    """
    message = from_text(termination_message(termination_log), PrepareResult)
    if message is None:
        return -signal.SIGKILL
    if not message.reason and (message.manifest or message.data):
        return ExitCode.DONE
    codes = [code for code, reason in EXIT_REASONS.items() if reason == message.reason]
    return codes[0] if codes else ExitCode.DONE if message.manifest or message.data else ExitCode.CRASHED


def termination_message(termination_log: Path, log: Path | None = None) -> str:
    """The message that a process left, as the kubelet reads it; the end of `log` where it left none."""
    written = termination_log.read_bytes() if termination_log.exists() else b""
    if not written and log is not None and log.exists():
        written = b"".join(log.read_bytes().splitlines(keepends=True)[-FALLBACK_LINES:])[-FALLBACK_BYTES:]
    return written[:MESSAGE_BYTES].decode(errors="replace")


def container_exit_code(code: int) -> int:
    """Exit code as a container shows it: 128 + the signal's number where a signal ended it."""
    return code if code >= 0 else 128 - code


def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def _start_time(pid: int, *, zombies: bool = True) -> int | None:
    """Start of a process in clock ticks since boot; None where there is none (or only a zombie)."""
    try:
        # The name in the second field may hold spaces and brackets: what follows the last bracket is well-formed.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" and not zombies else int(fields[19])


def find(variable: str, value: str) -> ProcessId | None:
    """The running session leader that was started with this environment variable; None where there is none.

    It needs no record of the process, so a program that was killed right after the start loses nothing.
    """
    wanted = f"{variable}={value}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        pid = int(folder.name)
        try:
            if wanted not in (folder / "environ").read_bytes().split(b"\0") or os.getsid(pid) != pid:
                continue
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # somebody else's, or it ended in between
        start = _start_time(pid, zombies=False)
        if start is not None:
            return ProcessId(pid, start, _boot())
    return None
