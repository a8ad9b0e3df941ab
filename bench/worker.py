"""Processes under measurement: the operator, the bare client and the empty kopf, each watching one namespace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.load import Client, Object, Population, Server, Stages, until
from gemmatune_operator.manifests import access
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.servers import Server as Process

PATIENCE = 240.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    repeats: int = 5
    burst: int = 500
    growth: tuple[int, ...] = (1, 100, 1000, 5000)
    rate: float = 100.0
    idle: int = 30
    finished: int = 500
    live: int = 1000
    restarts: int = 5
    progress_seconds: float = 120.0
    whole: int = 20


QUICK = Sizes(1, 20, (1, 10), 20.0, 3, 10, 10, 1, 2.0, 6)


@dataclass
class Bench:
    """One control plane, and what was measured on it."""

    plane: ControlPlane
    client: Client
    server: Server
    stages: Stages
    sizes: Sizes
    logs: Path
    found: dict[str, Any] = field(default_factory=dict)
    _namespaces: int = 0

    async def namespace(self) -> Population:
        """A new namespace with its access objects."""
        self._namespaces += 1
        name = f"bench-{self._namespaces}"
        await self.client.create("/api/v1/namespaces", {"metadata": {"name": name}})
        rbac = f"/apis/{access.RBAC}/v1/namespaces/{name}"
        paths = {
            "ServiceAccount": f"/api/v1/namespaces/{name}/serviceaccounts",
            "Role": f"{rbac}/roles",
            "RoleBinding": f"{rbac}/rolebindings",
        }
        for obj in access.objects(name, None):
            await self.client.create(paths[obj["kind"]], obj)
        return Population(self.client, self.stages, name)

    @contextlib.asynccontextmanager
    async def worker(self, kind: str, namespace: str) -> AsyncIterator[Worker]:
        """The operator, the ceiling or the floor as a process that watches the namespace."""
        worker = Worker(self, kind, namespace)
        try:
            await worker.ready()
            yield worker
        finally:
            worker.stop()

    def note(self, what: str, value: Any) -> None:
        """Adds a raw measurement."""
        self.found.setdefault(what, []).append(value)
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{what}: {shown}", flush=True)


class Worker:
    """A process under measurement."""

    def __init__(self, bench: Bench, kind: str, namespace: str) -> None:
        self.kind = kind
        log = bench.logs / f"{namespace}-{kind}.log"
        self.began = time.perf_counter()
        self._operator: OperatorProcess | None = None
        if kind == "operator":
            self._operator = OperatorProcess(bench.plane.kubeconfig, log, namespaces=[namespace])
            self.process = self._operator.server
        else:
            flags = ["--namespace", namespace]
            if kind == "bare":
                templates = bench.logs / "stages.json"
                templates.write_text(json.dumps(asdict(bench.stages)))
                flags += ["--server", json.dumps(asdict(bench.server)), "--stages", str(templates)]
            environment = {**os.environ, "KUBECONFIG": str(bench.plane.kubeconfig)}
            self.process = Process(kind, [sys.executable, "-m", f"bench.{kind}", *flags], log, environment)
        self.usage = psutil.Process(self.process.process.pid)

    async def ready(self) -> None:
        """Until it watches."""
        if self._operator is not None:
            await asyncio.to_thread(self._operator.ready)
            return
        self.process.check()
        if self.kind == "bare":
            await until(self._watches, "the bare client", 60)
        await self.settled(0.3)

    def _watches(self) -> bool:
        self.process.check()
        return "watching" in self.process.log.read_text()

    async def until(self, holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Waits for what the process shall do. Errors: TimeoutError; RuntimeError where it has ended."""

        def checked() -> object:
            self.process.check()
            return holds()

        await until(checked, f"{what} of the {self.kind}", seconds)

    async def settled(self, quiet: float = 0.5) -> None:
        """Until it uses nearly no processor any more."""
        last = self.cpu()
        for _ in range(400):
            await asyncio.sleep(quiet)
            self.process.check()
            now = self.cpu()
            if now - last < 0.05 * quiet:
                return
            last = now

    def cpu(self) -> float:
        """Seconds of processor time."""
        return processor_seconds(self.usage)

    def resident(self) -> int:
        """Bytes."""
        return int(self.usage.memory_info().rss)

    def requests(self) -> dict[str, int]:
        """Requests so far by verb and kind, from the operator's own metrics."""
        counts: dict[str, int] = {}
        for line in self._metrics():
            if line.startswith("gemmatune_api_requests_total{"):
                labels = dict(item.split("=") for item in line[line.index("{") + 1 : line.index("}")].split(","))
                key = f"{labels['verb']} {labels['kind']}".replace('"', "")
                counts[key] = counts.get(key, 0) + int(float(line.split()[-1]))
        return counts

    def metric(self, name: str) -> float:
        """A metric's value, 0 where it is not there yet."""
        return sum(float(line.split()[-1]) for line in self._metrics() if line.startswith(name))

    def _metrics(self) -> list[str]:
        assert self._operator is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{self._operator.port}/metrics", timeout=30) as answer:
            return str(answer.read().decode()).splitlines()

    def stop(self) -> None:
        self.process.stop(10.0)


def processor_seconds(process: psutil.Process) -> float:
    """Seconds of processor time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


WRITES = ("create", "apply", "delete", "replace")


def writes(requests: Object, events: bool = False) -> int:
    """Writing requests, without Events unless asked for."""
    return sum(n for what, n in requests.items() if what.split()[0] in WRITES and (events or "Event" not in what))


def difference(after: Object, before: Object) -> dict[str, int]:
    """Requests in between."""
    return {what: n - before.get(what, 0) for what, n in after.items() if n > before.get(what, 0)}
