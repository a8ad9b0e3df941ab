"""A process run to its end, with its largest resident size as the kernel noted it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_STARTER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(sys.argv[1], "w") as file:
    json.dump([process.returncode, peak, usage.ru_utime + usage.ru_stime], file)
"""
"""Linux hands the largest size of a process on to what it starts, across exec: so a small one starts the measured."""


@dataclass(frozen=True)
class Ended:
    """The exit code of a process (negative: a signal), its largest resident size in bytes, and its CPU seconds."""

    code: int
    peak: int
    cpu_seconds: float


def run(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Ended:
    """Runs a command in the folder of `log`, which takes its output."""
    note = log.with_suffix(".ended")
    with log.open("wb") as output:
        subprocess.run(
            [sys.executable, "-S", "-c", _STARTER, str(note), *command],
            check=True,
            cwd=log.parent,
            stdout=output,
            stderr=output,
            env=dict(environment),
        )
    return Ended(*json.loads(note.read_text()))
