"""Trainer processes that start at once: a host imports the trainer's libraries one time and forks for every run.

Each run is a process of its own, with its own environment, signals and exit code, that does what
`python -m gemmatune_trainer ROLE` does. The host reads one JSON request per line on stdin and answers on stdout.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG
from gemmatune_api.runconfig import RunConfig
from tests.support.wait import wait_for

ROOT = Path(__file__).resolve().parents[2]


STORAGE_TIMEOUT = "TESTS_STORAGE_TIMEOUT"
"""Variable of a run's environment: seconds after which its storage client gives up a silent server, in place of 60."""


class TrainerProcess:
    """One run that was started."""

    def __init__(self, host: TrainerHost, pid: int, folder: Path) -> None:
        self._host = host
        self.pid = pid
        self.folder = folder
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code (minus the signal's number where one ended it), None while it runs."""
        if self._code is None:
            self._code = self._host.ask({"poll": self.pid})["code"]
        return self._code

    def wait(self, seconds: float = 300) -> int:
        """Waits for its end; the exit code."""
        wait_for(lambda: self.poll() is not None, "the trainer's end", seconds=seconds, detail=self.log)
        assert self._code is not None
        return self._code

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def log(self) -> str:
        """What it wrote to stderr."""
        path = self.folder / "stderr"
        return path.read_text() if path.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}"))
        return [line for line in lines if line.get("event") == name]

    @property
    def message(self) -> TerminationMessage:
        """Its termination message."""
        found = from_text((self.folder / "termination").read_text(), TerminationMessage)
        assert found is not None
        return found

    @property
    def status(self) -> dict[str, Any]:
        """The status fields that it left."""
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found


class TrainerHost:
    """The host process, and the runs it was asked for."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.trainerhost"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # on a tiny model, threads only wait for each other
        )  # fmt: skip
        self._runs: list[TrainerProcess] = []

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request; the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(
        self,
        role: str,
        config: RunConfig | str,
        folder: Path,
        env: Mapping[str, str] | None = None,
        disk: int | None = None,
    ) -> TrainerProcess:
        """Starts a run whose termination message, status and stderr go to `folder`.

        `disk`: its cache is a file system of its own of that many bytes, which ends with it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            ENV_RUN: config if isinstance(config, str) else config.to_env(),
            ENV_TERMINATION_LOG: str(folder / "termination"),
            ENV_STATUS_FILE: str(folder / "status.json"),
            ENV_CACHE: os.environ.get(ENV_CACHE, str(folder / "cache")),
            **(env or {}),
        }
        request = {"role": role, "env": environment, "stderr": str(folder / "stderr"), "disk": disk}
        pid = self.ask(request)["pid"]
        self._runs.append(TrainerProcess(self, pid, folder))
        return self._runs[-1]

    def run(
        self, role: str, config: RunConfig | str, folder: Path, env: Mapping[str, str] | None = None
    ) -> TrainerProcess:
        """Starts a run and waits for its end."""
        started = self.start(role, config, folder, env)
        started.wait()
        return started

    def __enter__(self) -> TrainerHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs:
            run.signal(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def serve(requests: TextIO, answers: TextIO) -> None:
    """The host's loop: forks a run per request, and tells how runs have ended."""
    import gemmatune_trainer.prepare
    import gemmatune_trainer.run  # noqa: F401

    if importlib.util.find_spec("keras_hub") is not None:
        os.environ["KERAS_BACKEND"] = "jax"
        importlib.import_module("gemmatune_trainer.backends.keras_backend")  # JAX starts no device and no thread yet
    else:
        importlib.import_module("gemmatune_trainer.backends.torch")
    for line in requests:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer: dict[str, Any] = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            answer = {"pid": _fork(request)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _fork(request: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        target = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.environ.update(request["env"])
        if request.get("disk"):
            _small_disk(Path(os.environ[ENV_CACHE]), request["disk"])
        if seconds := os.environ.get(STORAGE_TIMEOUT):
            from gemmatune_trainer import storage_gcs

            storage_gcs._TIMEOUT = (float(seconds), float(seconds))
        from gemmatune_trainer.__main__ import main

        code = main([request["role"]])
        sys.stderr.flush()
    finally:
        os._exit(code)


def _small_disk(folder: Path, size: int) -> None:
    """Puts a file system of `size` bytes over the folder, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_namespace, clone_user, mount_private = 0x00020000, 0x10000000, 1 << 18 | 1 << 14
    folder.mkdir(parents=True, exist_ok=True)
    if libc.unshare(clone_namespace | (clone_user if os.getuid() else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(None, b"/", None, mount_private, None) or libc.mount(
        b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()
    ):
        raise OSError(ctypes.get_errno(), "mount")


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
