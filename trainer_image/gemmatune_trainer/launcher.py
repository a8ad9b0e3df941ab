"""Starts the trainer once for every GPU of this pod and watches over the processes: the pod ends as the run does.

torchrun ends with 1 whatever its processes end with, and leaves no termination message (docs/architecture.md). Only the
standard library is used here: this process lives beside the trainer's and shall cost nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from gemmatune_api.names import DEFAULT_TERMINATION_LOG, ENV_JOIN_SECONDS, ENV_TERMINATION_LOG, TRAINER_MODULE, ExitCode

LOCAL = "127.0.0.1"
LOOK_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""What the other processes get to end by themselves, once one has failed or rank 0 has ended."""
SECONDARY_SECONDS = 10.0
"""How long a pod of several that only lost its connections waits: the pod with the cause shall be the first to fail."""


@dataclass
class Child:
    """One process of the trainer."""

    rank: int
    process: subprocess.Popen[bytes]
    message: Path
    """Where it leaves its termination message."""
    ended: float | None = None

    @property
    def code(self) -> int:
        """Its exit code; 128 and the signal's number where one ended it."""
        found = self.process.returncode
        return found if found >= 0 else 128 - found

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.process.returncode < 0

    @property
    def explained(self) -> bool:
        """Whether its code says why it failed."""
        return self.code in set(ExitCode) - {ExitCode.DONE, ExitCode.CRASHED}


@dataclass
class Family:
    """The processes of this pod."""

    children: list[Child]
    several_pods: bool
    signalled: set[int] = field(default_factory=set)

    def forward(self, number: int, frame: FrameType | None = None) -> None:
        """Hands a signal on to all that live."""
        self.signalled.add(number)
        for child in self.children:
            if child.process.poll() is None:
                child.process.send_signal(number)

    def watch(self) -> Child:
        """Waits for the end of all; the one that speaks for the pod."""
        deadline: float | None = None
        while any(child.ended is None for child in self.children):
            now = time.monotonic()
            for child in self.children:
                if child.ended is None and child.process.poll() is not None:
                    child.ended = now
                    if deadline is None and (child.code or child.rank == 0):
                        deadline = child.ended + GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                self.forward(signal.SIGKILL)
            time.sleep(LOOK_SECONDS)
        return self.speaker()

    def speaker(self) -> Child:
        """Rank 0 where it is done; else the first whose code says why, the first that failed, or rank 0.

        Of those that failed since the last look, one that a signal ended was the first: a process that loses its
        connections to another ends by itself.
        """
        if self.children[0].rank == 0 and not self.children[0].code:
            return self.children[0]
        failed = sorted(
            (child for child in self.children if child.code), key=lambda child: (child.ended or 0.0, not child.killed)
        )
        explained = [child for child in failed if child.explained]
        return (explained or failed or self.children)[0]


def main(arguments: Sequence[str]) -> int:
    """Starts the processes and waits for them; the exit code of the pod."""
    wanted = _parsed(arguments)
    log = os.environ.get(ENV_TERMINATION_LOG) or DEFAULT_TERMINATION_LOG
    with tempfile.TemporaryDirectory(prefix="gemmatune-ranks-") as folder:
        family = Family([], wanted.nodes > 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, family.forward)
        for local in range(wanted.per_node):
            family.children.append(_start(wanted, local, Path(folder)))
        for number in family.signalled:
            family.forward(number)  # came while they were started
        speaker = family.watch()
        if family.several_pods and speaker.code and not speaker.explained and not family.signalled:
            time.sleep(SECONDARY_SECONDS)
        _leave(speaker, Path(log))
    return speaker.code


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gemmatune_trainer.launcher", description=__doc__)
    parser.add_argument("--per-node", type=int, required=True, help="processes of this pod, one for each GPU")
    parser.add_argument("--nodes", type=int, default=1, help="pods of the attempt")
    parser.add_argument("--node", type=int, default=0, help="number of this pod, from 0")
    parser.add_argument("--meet", default="", help="HOST:PORT of the first pod, where there are several")
    parser.add_argument("--wait", type=int, default=0, help="seconds that the pods wait for each other")
    parser.add_argument("role", help="role of the trainer")
    found = parser.parse_args(arguments)
    found.meet = found.meet or f"{LOCAL}:{free_port()}"
    return found


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as listener:
        listener.bind((LOCAL, 0))
        return int(listener.getsockname()[1])


def _start(wanted: argparse.Namespace, local: int, folder: Path) -> Child:
    rank = wanted.node * wanted.per_node + local
    message = folder / f"termination-{rank}"
    host, _, port = wanted.meet.rpartition(":")
    told: Mapping[str, str] = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(wanted.nodes * wanted.per_node),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        ENV_TERMINATION_LOG: str(message),
        **({ENV_JOIN_SECONDS: str(wanted.wait)} if wanted.wait else {}),
    }
    command = [sys.executable, "-m", TRAINER_MODULE, wanted.role]
    return Child(rank, subprocess.Popen(command, env={**os.environ, **told}), message)


def _leave(speaker: Child, log: Path) -> None:
    """Hands the message of the process that speaks for the pod on to the kubelet."""
    if speaker.message.exists() and (ENV_TERMINATION_LOG in os.environ or log.exists()):
        log.write_bytes(speaker.message.read_bytes())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
