"""The ceiling: a bare asyncio client that makes the operator's calls in the operator's order, without kopf or policy.

A new run: its Job is created; when no other run has come for a moment (as the operator's work queue counts it), its
status is applied; Events are recorded last.
A finished Job: the resource's last status is applied. Texts are templates; nothing is planned or compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.load import APPLY, OPERATOR, Client, Object, Paths, Server, Stages, fill
from gemmatune_api import names
from gemmatune_operator.workqueue import LOOK_AGAIN_SECONDS, PATIENCE_SECONDS, QUIET_SECONDS

WORKERS = 16
Work = Callable[[], Awaitable[None]]


class Bare:
    """One process's work on one namespace."""

    def __init__(self, client: Client, stages: Stages, namespace: str) -> None:
        self._client, self._stages, self._namespace = client, stages, namespace
        self._paths = Paths(namespace)
        self._lines: tuple[deque[Work], deque[Work], deque[Work]] = (deque(), deque(), deque())
        self._patient: deque[tuple[float, Work]] = deque()
        self._urgent_until = 0.0
        self._some = asyncio.Event()
        self._runs: dict[str, Object] = {}
        self._done: set[str] = set()

    async def run(self) -> None:
        """For ever."""
        listed = await self._client.get(self._paths.runs)
        for run in listed["items"]:
            self._runs[run["metadata"]["name"]] = run["metadata"]
        since = listed["metadata"]["resourceVersion"]
        print("watching", flush=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_runs(since))
            group.create_task(self._watch_jobs(since))
            for number in range(WORKERS):
                group.create_task(self._work(events=number == 0))

    def _add(self, urgency: int, work: Work) -> None:
        if urgency == 0:
            self._urgent_until = time.monotonic() + QUIET_SECONDS
        self._lines[urgency].append(work)
        self._some.set()

    def _grow_impatient(self) -> None:
        """Statuses of new runs have their turn."""
        now = time.monotonic()
        while self._patient and now >= min(self._urgent_until, self._patient[0][0] + PATIENCE_SECONDS):
            self._lines[1].append(self._patient.popleft()[1])

    async def _work(self, events: bool) -> None:
        while True:
            self._grow_impatient()
            line = next((line for line in self._lines[: 3 if events else 2] if line), None)
            if line is None or (line is self._lines[2] and self._patient):
                self._some.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._some.wait(), LOOK_AGAIN_SECONDS if self._patient else None)
                if not any(self._lines[:2]) and not events:
                    await asyncio.sleep(0.001)
                continue
            await line.popleft()()

    async def _watch_runs(self, since: str) -> None:
        async for event in self._client.watch(self._paths.runs, since):
            meta = event["object"]["metadata"]
            name = meta["name"]
            self._runs[name] = meta
            if event["type"] == "ADDED":
                self._add(0, lambda name=name: self._first_job(name))  # type: ignore[misc]

    async def _watch_jobs(self, since: str) -> None:
        async for event in self._client.watch(self._paths.jobs, since):
            name = event["object"]["metadata"]["name"]
            found = event["object"].get("status", {}).get("conditions", [])
            if name.endswith("-t1") and name not in self._done and any(item["type"] == "Complete" for item in found):
                self._done.add(name)
                run = name.removesuffix("-t1")
                self._add(0, lambda run=run: self._status(run, self._stages.succeeded, ["Completed"]))  # type: ignore[misc]

    async def _first_job(self, name: str) -> None:
        uid = self._runs[name]["uid"]
        await self._client.send("POST", self._paths.jobs, fill(self._stages.prepare, self._namespace, name, uid))
        status = functools.partial(self._status, name, self._stages.preparing, ["Valid", "Preparing"])
        self._patient.append((time.monotonic(), status))
        self._some.set()

    async def _status(self, name: str, status: str, reasons: list[str]) -> None:
        meta = self._runs[name]
        text = fill(status, self._namespace, name, meta["uid"]).decode()
        head = f'"apiVersion":"{names.API_VERSION}","kind":"{names.KIND}"'
        version = f'{{"name":"{name}","resourceVersion":"{meta["resourceVersion"]}"}}'
        body = f'{{{head},"metadata":{version},"status":{text}}}'.encode()
        await self._client.send("PATCH", f"{self._paths.runs}/{name}/status", body, APPLY, OPERATOR)
        for reason in reasons:
            self._add(2, lambda reason=reason: self._event(name, meta, reason))  # type: ignore[misc]

    async def _event(self, name: str, meta: Object, reason: str) -> None:
        body = {
            "metadata": {"name": f"{name}.{secrets.token_hex(8)}", "namespace": self._namespace},
            "involvedObject": {"kind": names.KIND, "namespace": self._namespace, "name": name, "uid": meta["uid"]},
            "reason": reason,
            "message": "Preparation 1 checks access and data on a CPU node.",
            "type": "Normal",
            "firstTimestamp": "2026-03-01T12:00:00Z",
            "lastTimestamp": "2026-03-01T12:00:00Z",
            "count": 1,
        }
        await self._client.send("POST", self._paths.events, body)


def main() -> None:
    """Works until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=json.loads, required=True)
    parser.add_argument("--stages", type=Path, required=True, help="JSON file")
    parser.add_argument("--namespace", required=True)
    found = parser.parse_args()

    async def run() -> None:
        async with Client(Server(**found.server)) as client:
            await Bare(client, Stages(**json.loads(found.stages.read_text())), found.namespace).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
