"""`gft` as a person runs it: as a process with a kubeconfig, with its output in pipes or on a terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.wait import wait_for

COMMAND = (sys.executable, "-m", "gemmatune_cli")
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(frozen=True)
class Done:
    """How it ended."""

    code: int
    out: str
    error: str


def gft(kubeconfig: Path, *arguments: str, seconds: float = 120) -> Done:
    """Runs a command to its end."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=_environment(kubeconfig),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


class Terminal:
    """A command on a terminal of 120 by 40 characters; a context manager that ends it."""

    def __init__(self, kubeconfig: Path, arguments: Sequence[str]) -> None:
        self._main, other = pty.openpty()
        size = {"COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env={**_environment(kubeconfig), **size},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(other)
        self._content = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._main, 65536)
            except OSError:  # Linux: the other side is closed
                return
            if not piece:
                return
            self._content += piece

    @property
    def text(self) -> str:
        """All that was written so far, without control sequences."""
        return _CONTROLS.sub("", self._content.decode(errors="replace"))

    def shows(self, text: str, seconds: float = 60) -> None:
        """Waits until a text has been written."""
        wait_for(lambda: text in self.text, f"{text!r} on the terminal", seconds=seconds, detail=lambda: self.text)

    def press(self, key: bytes) -> None:
        """Presses a key."""
        os.write(self._main, key)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(10)
        os.close(self._main)


def _own_terminal() -> None:
    """Makes standard input the controlling terminal, so that Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell lets what it starts in the background ignore it


def _environment(kubeconfig: Path) -> dict[str, str]:
    return {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
