"""Stands in for the trainer on the test node: ends, hangs or waits as its environment says, as a real process.

FAULT is `exit CODE [MESSAGE]`, `crash`, `kill`, `complete` (a result without a manifest) or `run`; only the first
attempt obeys it, later ones run until SIGTERM, and then end with 30 as the trainer does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

LOG = Path(os.environ["GEMMATUNE_TERMINATION_LOG"])


def say(**message: object) -> None:
    """Leaves the termination message."""
    LOG.write_text(json.dumps(message))


def stopped(_: int, __: FrameType | None) -> None:
    """SIGTERM: a checkpoint is saved."""
    say(reason="Interrupted", message="Stopped by SIGTERM; the checkpoint is saved.", step=7)
    os._exit(30)


def main() -> None:
    """What FAULT says."""
    signal.signal(signal.SIGTERM, stopped)
    first = json.loads(os.environ["GEMMATUNE_RUN"])["attempt"] == 1
    kind, _, rest = os.environ.get("FAULT", "run").partition(" ") if first else ("run", "", "")
    if kind == "exit":
        code, _, message = rest.partition(" ")
        if message:
            say(message=message, step=3)
        sys.exit(int(code))
    if kind == "crash":
        raise ValueError("the tensor is upside down")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "complete":
        return
    print("answers SIGTERM", flush=True)
    while True:
        signal.pause()


main()
