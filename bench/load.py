"""What the benchmark of the operator puts on a real API server: runs in bulk, and a watch that notes when what came."""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from gemmatune_api import names
from tests.support.play import NAME, NAMESPACE, PREPARED, SPEC, Play

Object = dict[str, Any]
JSON, MERGE, STRATEGIC = "application/json", "application/merge-patch+json", "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
UID = "@UID@"
"""Stands in templates for the UID that the API server gives a resource."""
OPERATOR = {"fieldManager": names.FIELD_MANAGER_OPERATOR, "force": "true"}
TRAINER = {"fieldManager": names.FIELD_MANAGER_TRAINER, "force": "true"}
DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}


@dataclass(frozen=True)
class Server:
    """Where the API server is, and files to log in with."""

    url: str
    authority: str
    certificate: str
    key: str


class Client:
    """JSON over one session."""

    def __init__(self, server: Server) -> None:
        context = ssl.create_default_context(cafile=server.authority)
        context.load_cert_chain(server.certificate, server.key)
        self._url = server.url
        connector = aiohttp.TCPConnector(ssl=context, limit=100)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**21, trust_env=False)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(
        self, method: str, path: str, body: bytes | Object, kind: str = JSON, query: Mapping[str, str] | None = None
    ) -> bytes:
        """The answer. Errors: RuntimeError with the server's words."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self._session.request(
            method, self._url + path, data=data, params=query, headers={"Content-Type": kind}
        ) as answer:
            text = await answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status}: {text.decode()[:500]}")
            return text

    async def create(self, path: str, body: Object) -> Object:
        made: Object = json.loads(await self.send("POST", path, body))
        return made

    async def get(self, path: str, **query: str) -> Object:
        async with self._session.get(self._url + path, params=query) as answer:
            text = await answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"GET {path}: {answer.status}: {text.decode()[:500]}")
            found: Object = json.loads(text)
            return found

    async def watch(self, path: str, since: str) -> AsyncIterator[Object]:
        """Changes from a version on, for ever: the API server ends watches when it reads a CRD anew."""
        timeout = aiohttp.ClientTimeout(total=None)
        while True:
            query = {"resourceVersion": since, "watch": "true"}
            async with self._session.get(self._url + path, params=query, timeout=timeout) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"the watch of {path} ended: {event['object']}")
                    since = event["object"]["metadata"]["resourceVersion"]
                    yield event


class Paths:
    """Collections of a namespace."""

    def __init__(self, namespace: str) -> None:
        self.runs = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.events = f"/api/v1/namespaces/{namespace}/events"


@dataclass
class Watched:
    """When each object was first seen (`perf_counter`), and when it was first seen to be such."""

    seen: dict[str, float] = field(default_factory=dict)
    such: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    async def follow(self, client: Client, path: str, since: str, test: Callable[[Object], object]) -> None:
        """Notes for ever."""
        async for event in client.watch(path, since):
            obj, now = event["object"], time.perf_counter()
            name = obj["metadata"]["name"]
            self.seen.setdefault(name, now)
            if name not in self.such and test(obj):
                self.such[name] = now


async def until(holds: Callable[[], object], what: str, seconds: float) -> None:
    """Waits for a condition. Errors: TimeoutError."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} not within {seconds:.0f} s")
        await asyncio.sleep(0.01)


async def each(items: Iterable[Any], work: Callable[[Any], Awaitable[object]], workers: int) -> None:
    """Works on all items, so many at a time."""
    line = iter(items)

    async def worker() -> None:
        for item in line:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())


async def paced(items: Iterable[Any], work: Callable[[Any], Awaitable[object]], rate: float) -> None:
    """Begins work on so many items a second, whatever becomes of the earlier ones."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, item in enumerate(items):
            wait = began + number / rate - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(work(item))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stages:
    """The objects of a run at its stages, as text in which name, namespace and UID are to be filled in."""

    run: str
    prepare: str
    preparing: str
    prepared: str
    """Status of the completed preparation's pod."""
    train: str
    training: str
    succeeded: str
    done: str
    """Status of the completed attempt's pod."""
    running: str
    """Status of the attempt's pod that trains."""


def stages() -> Stages:
    """From the policies themselves, on the embedded cluster."""
    play = Play()
    play.look()
    prepare, preparing = play.job(f"{NAME}-p1"), _status(play)
    play.ends(f"{NAME}-p1", 0, PREPARED)
    prepared = play.pod(f"{NAME}-p1")["status"]
    train = play.job(f"{NAME}-t1")
    play.runs(f"{NAME}-t1")
    training, running = _status(play), play.pod(f"{NAME}-t1")["status"]
    play.ends(f"{NAME}-t1", 0, DONE)
    succeeded, done = _status(play), play.pod(f"{NAME}-t1")["status"]
    run = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {**copy.deepcopy(SPEC), "output": {"uri": f"gs://bucket/{NAMESPACE}/{NAME}"}},
    }
    uid = play.resource["metadata"]["uid"]
    found = (run, prepare, preparing, prepared, train, training, succeeded, done, running)
    return Stages(*(_template(item, uid) for item in found))


def _status(play: Play) -> Object:
    status = play.resource["status"]
    return {name: value for name, value in status.items() if name not in names.TRAINER_STATUS_FIELDS}


def _template(obj: Object, uid: str) -> str:
    obj = {name: value for name, value in obj.items() if obj.get("kind") != "Job" or name != "status"}
    if "metadata" in obj:
        server = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")
        obj["metadata"] = {name: value for name, value in obj["metadata"].items() if name not in server}
    text = json.dumps(obj, separators=(",", ":")).replace("gs://bucket/quotes", f"gs://bucket/{NAMESPACE}/{NAME}")
    text = text.replace(uid, UID).replace("quotes.jsonl", "rows.jsonl").replace(NAME, "@NAME@")
    for before, after in (('"', '"'), ('\\"', '\\"'), ("/", "/")):
        text = text.replace(f"{before}{NAMESPACE}{after}", f"{before}@NAMESPACE@{after}")
    return text


def fill(template: str, namespace: str, name: str, uid: str = "") -> bytes:
    """The text of an object."""
    return template.replace("@NAMESPACE@", namespace).replace("@NAME@", name).replace(UID, uid).encode()


class Population:
    """Runs in a namespace that are made without an operator."""

    def __init__(self, client: Client, templates: Stages, namespace: str) -> None:
        self.client, self.templates, self.namespace = client, templates, namespace
        self.paths = Paths(namespace)
        self.uids: dict[str, str] = {}

    async def create(self, name: str) -> None:
        """A new run."""
        body = fill(self.templates.run, self.namespace, name)
        made = json.loads(await self.client.send("POST", self.paths.runs, body))
        self.uids[name] = made["metadata"]["uid"]

    async def train(self, name: str) -> None:
        """A run in its first attempt: completed preparation, running Job and pod, a first progress."""
        await self.create(name)
        await self.job(name, self.templates.prepare, f"{name}-p1")
        await self.pod(name, f"{name}-p1", "prepare", self.templates.prepared)
        await self.complete(f"{name}-p1")
        await self.job(name, self.templates.train, f"{name}-t1")
        await self.pod(name, f"{name}-t1", "train", self.templates.running)
        active = {"status": {"active": 1, "ready": 1, "startTime": STARTED}}
        await self.client.send("PATCH", f"{self.paths.jobs}/{name}-t1/status", active, MERGE)
        status = json.loads(fill(self.templates.training, self.namespace, name, self.uids[name]))
        await self.apply(name, status, OPERATOR)
        await self.progress(name, 0)

    async def apply(self, name: str, status: Object, query: Mapping[str, str]) -> None:
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "status": status}
        await self.client.send("PATCH", f"{self.paths.runs}/{name}/status", body, APPLY, query)

    async def progress(self, name: str, step: int) -> None:
        """What a trainer reports: numbers, a text, and a curve of 30 points."""
        curve = {"historySteps": list(range(30)), "historyLoss": [round(3 - number / 20, 4) for number in range(30)]}
        told = {"step": step, "totalSteps": 10_000, "stepText": f"{step}/10000", "epoch": 0.1, "loss": 2.345}
        rest = {"learningRate": 2e-4, "tokensPerSecond": 5120.5, "eta": "1h12m", "heartbeat": STARTED}
        await self.apply(name, {"progress": {**told, **rest, **curve}}, TRAINER)

    async def job(self, name: str, template: str, job: str) -> None:
        """A Job of a run, as the operator makes it."""
        await self.client.send("POST", self.paths.jobs, fill(template, self.namespace, name, self.uids[name]))

    async def pod(self, name: str, job: str, role: str, status: str) -> None:
        """The pod of a Job, as the Job controller makes it, and what the kubelet says of it."""
        labels = {
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_RUN: name,
            names.LABEL_RUN_UID: self.uids[name],
            names.LABEL_ATTEMPT: "1",
            names.LABEL_ROLE: role,
            "batch.kubernetes.io/job-name": job,
        }
        container = {"name": names.CONTAINER, "image": "trainer:1", "env": [{"name": "RUN", "value": "x" * 1500}]}
        body = {
            "metadata": {"name": f"{job}-x7k2p", "labels": labels},
            "spec": {
                "restartPolicy": "Never",
                "nodeName": "node",
                "serviceAccountName": names.TRAINER_SERVICE_ACCOUNT,
                "containers": [container],
            },
        }
        await self.client.send("POST", self.paths.pods, body)
        await self.pod_status(job, status)

    async def pod_status(self, job: str, status: str) -> None:
        """What the kubelet says."""
        said = json.loads(fill(status, self.namespace, ""))
        for item in said.get("containerStatuses", []):
            item.update({"image": "x", "imageID": "x", "ready": False, "restartCount": 0})
        path = f"{self.paths.pods}/{job}-x7k2p/status"
        await self.client.send("PATCH", path, {"status": said}, STRATEGIC)

    async def complete(self, job: str) -> None:
        """The Job controller's last word on a Job."""
        since = {"status": "True", "lastTransitionTime": STARTED, "lastProbeTime": STARTED}
        conditions = [{"type": kind, **since} for kind in ("SuccessCriteriaMet", "Complete")]
        told = {"succeeded": 1, "active": 0, "ready": 0, "startTime": STARTED, "completionTime": STARTED}
        body = {"status": {**told, "conditions": conditions}}
        await self.client.send("PATCH", f"{self.paths.jobs}/{job}/status", body, MERGE)


STARTED = "2026-03-01T12:00:00Z"
