"""The operator as a real process against the real control plane, and a process that dies at a failpoint."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.support.servers import LOOPBACK, Server, free_ports
from tests.support.wait import wait_for

MODULE = ("-m", "gemmatune_operator")
DYING = ("-m", "tests.support.operator_process")
ENV_KILLED = "TEST_FAILPOINTS_KILLED"
ENV_PASSED = "TEST_FAILPOINTS_PASSED"
ENV_EACH = "TEST_FAILPOINTS_EACH"
ENV_HANG = "TEST_HANG"
ENV_CLOCK = "TEST_CLOCK"
ROOT = Path(__file__).resolve().parents[2]


class OperatorProcess:
    """One operator; `namespaces` bounds what it watches."""

    def __init__(
        self,
        kubeconfig: Path,
        log: Path,
        *,
        namespaces: Sequence[str] = (),
        command: Sequence[str] = MODULE,
        environment: dict[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.port = free_ports(1)[0]
        flags = ["--bind", LOOPBACK, "--port", str(self.port), "--namespaces", ",".join(namespaces), *arguments]
        variables = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT), **(environment or {})}
        self.server = Server("operator", [sys.executable, *command, *flags], log, variables)

    @property
    def ended(self) -> int | None:
        """The process's exit code; None while it runs."""
        return self.server.process.poll()

    def ready(self) -> OperatorProcess:
        """Waits until it watches."""

        def answers() -> bool:
            self.server.check()
            return self.probe("readyz") == 200

        wait_for(answers, "the operator to be ready", seconds=60, detail=self.server.tail)
        return self

    def probe(self, path: str) -> int:
        """HTTP code of a probe; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def probe_text(self, path: str) -> str:
        """Text of a probe's answer."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def metrics(self) -> str:
        """A scrape."""
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    def stacks(self) -> list[str]:
        """Lines of the log that hold a stack: none in a sound operator."""
        return [line[-1500:] for line in self.server.log.read_text().splitlines() if "Traceback" in line]

    def kill(self) -> None:
        """SIGKILL: the process has no chance to tidy up."""
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()

    def stop(self, patience: float = 10.0) -> int:
        """SIGTERM; its exit code."""
        self.server.stop(patience)
        return self.server.process.returncode


_ordinals: Counter[str] = Counter()


def die_once(point: str) -> None:
    """A failpoint that kills this process the first time that a write is passed, ever.

    With ENV_EACH set, the second and third write of one kind in a process are points of their own.
    """
    if ENV_EACH in os.environ:
        _ordinals[point] += 1
        point = f"{point} #{_ordinals[point]}"
    if ENV_PASSED in os.environ:
        with Path(os.environ[ENV_PASSED]).open("a") as file:
            file.write(point + "\n")
    killed = os.environ.get(ENV_KILLED)
    if killed is None:
        return
    known = Path(killed).read_text().splitlines() if Path(killed).exists() else []
    if point not in known:
        with Path(killed).open("a") as file:
            file.write(point + "\n")
        os.kill(os.getpid(), signal.SIGKILL)


def shift_clock(file: Path) -> None:
    """The machine's clock is off by as many seconds as the file says now."""
    from gemmatune_operator import clock, process

    def shifted() -> float:
        return time.time() + float(file.read_text())

    process.SteadyClock = functools.partial(clock.SteadyClock, shifted)  # type: ignore[misc,assignment]


def hang(how: str) -> None:
    """Makes the first look hang (look), block the event loop (loop) or take its worker along (worker)."""
    from gemmatune_operator import health
    from gemmatune_operator.cluster import KubernetesCluster

    health.LOOP_SECONDS = health.LOOK_SECONDS = 3.0

    async def instead(*_: object, **__: object) -> object:
        if how == "loop":
            time.sleep(600)  # noqa: ASYNC251  (that is the fault)
        if how == "worker":
            raise asyncio.CancelledError
        return await asyncio.Event().wait()

    KubernetesCluster.apply_status = instead  # type: ignore[method-assign,assignment]


def main() -> None:
    """The operator with that failpoint, and nothing refused as not built yet."""
    from dataclasses import replace

    from gemmatune_operator import logs, options
    from gemmatune_operator.process import Process

    if ENV_HANG in os.environ:
        hang(os.environ[ENV_HANG])
    if ENV_CLOCK in os.environ:
        shift_clock(Path(os.environ[ENV_CLOCK]))
    found = options.read()
    logs.set_up(found.log_format)
    below = replace(found, settings=replace(found.settings, refused=()))

    async def run() -> None:
        await Process(below, failpoint=die_once).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
