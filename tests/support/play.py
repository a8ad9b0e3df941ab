"""A run on the embedded cluster whose pods are played by the test: reconcile and Job controller are the real ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from gemmatune_api import names
from gemmatune_api.names import ConditionType
from gemmatune_api.status import Attempt, FineTuneStatus
from gemmatune_cli.local import jobs
from gemmatune_cli.local.cluster import EmbeddedCluster
from gemmatune_cli.local.store import Store
from gemmatune_operator import conditions
from gemmatune_operator.cache import Cache
from gemmatune_operator.ports import Object
from gemmatune_operator.reconcile import Tools, look
from gemmatune_operator.settings import Settings
from gemmatune_operator.workqueue import Priority

NAMESPACE, NAME = "team", "quotes"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PREPARED = {
    "model": {
        "family": "gemma2",
        "size": "gemma-2-2b",
        "revision": "abc",
        "shape": {
            "model_type": "gemma2",
            "num_hidden_layers": 26,
            "hidden_size": 2304,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "intermediate_size": 9216,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
        },
    },
    "data": {"hash": "d1", "rows": 320, "tokens": 9000, "labelledTokens": 9000, "longest": 90},
}
SPEC: Object = {
    "model": {"uri": "hf://google/gemma-2-2b"},
    "dataset": {"uri": "gs://bucket/quotes.jsonl", "text": {"template": "Quote: {quote}"}},
    "output": {"uri": "gs://bucket/quotes"},
    "training": {"maxSteps": 100},
    "accelerator": {"gpu": {"type": "nvidia-l4"}},
}

DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}
"""Last words of a trainer that succeeded."""


def spec(**blocks: Any) -> Object:
    """The usual spec with some blocks replaced."""
    return {**SPEC, **blocks}


class Play:
    """One resource, a clock that the test moves, and pods whose ends the test chooses.

    `watching`: looks go by a cache that is told of everything, as the operator's are; otherwise all is read live.
    """

    watching = False

    def __init__(self, spec: Object | None = None, *, name: str = NAME, store: Store | None = None) -> None:
        self.now = START
        self.store = store or Store(None, lambda: self.now)
        self.cluster = EmbeddedCluster(self.store)
        self.settings = Settings()
        self.tools = Tools(self.cluster, self.settings, cache=Cache() if self.watching else None)
        self.name = name
        self.wake: float | None = None
        self.pods_by_job: dict[str, set[str]] = {}
        self.makes_pods = True
        """Whether the Job controller gets its pods past admission."""
        self.store.create(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": spec or SPEC,
            }
        )

    # --- the clock and the operator ---

    def look(self) -> FineTuneStatus:
        """Reconcile and Job controller take turns until nothing changes any more."""
        for _ in range(20):
            before = self.store.version
            self.reconcile_once()
            for job in self.store.list("Job") if self.makes_pods else []:
                jobs.sync(self.store, job, self.now)
            self._count_pods()
            if self.store.version == before:
                return self.status
        raise AssertionError("twenty looks, and still something changes")

    def tell(self) -> None:
        """What watches would have shown by now."""
        cache = self.tools.cache
        if cache is None:
            return
        for kind, take in (("Job", cache.job), ("Pod", cache.pod), (names.KIND, cache.resource)):
            before, found = cache.versions(kind), self.store.list(kind)
            for obj in found:
                take("MODIFIED", obj)
            cache.compare(kind, before, {(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in found})
        for event in self.store.list("Event"):
            cache.event(event)

    def wait(self, seconds: float) -> FineTuneStatus:
        """Time passes, then the operator looks."""
        self.now += timedelta(seconds=seconds)
        return self.look()

    def reconcile_once(self, seconds: float = 0) -> None:
        """Time passes, then the operator looks once; the resource may be gone afterwards."""
        self.now += timedelta(seconds=seconds)
        self.tell()
        tools = replace(self.tools, cluster=self.cluster, settings=self.settings)
        wake = asyncio.run(look(tools, NAMESPACE, self.name, self.now))
        self.wake = 0.0 if isinstance(wake, Priority) else wake

    def restart(self) -> None:
        """The operator starts anew: what only its process knew is forgotten."""
        self.cluster = EmbeddedCluster(self.store)
        self.tools = Tools(self.cluster, self.settings, cache=Cache() if self.watching else None)

    def _count_pods(self) -> None:
        for pod in self.store.list("Pod"):
            job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            uid = pod["metadata"]["ownerReferences"][0]["uid"]
            self.pods_by_job.setdefault(f"{job}/{uid}", set()).add(pod["metadata"]["uid"])

    # --- what there is ---

    @property
    def resource(self) -> Object:
        found = self.store.get(names.KIND, NAMESPACE, self.name)
        assert found is not None
        return found

    @property
    def status(self) -> FineTuneStatus:
        return FineTuneStatus.model_validate(self.resource.get("status") or {})

    @property
    def attempt(self) -> Attempt:
        return self.status.attempts[-1]

    def condition(self, kind: ConditionType) -> tuple[str, str] | None:
        found = conditions.find(self.status.conditions, kind)
        return (found.status, found.reason) if found else None

    def jobs(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in self.store.list("Job", NAMESPACE))

    def job(self, name: str) -> Object:
        found = self.store.get("Job", NAMESPACE, name)
        assert found is not None, f"no Job {name}, only {self.jobs()}"
        return found

    def one_pod_each(self) -> bool:
        """Whether no Job ever had a second pod."""
        return all(len(pods) == 1 for pods in self.pods_by_job.values())

    def pod(self, job: str) -> Object:
        found = [pod for pod in self.store.list("Pod", NAMESPACE) if pod["metadata"]["name"].startswith(f"{job}-")]
        assert len(found) == 1, f"{job} has {len(found)} pods"
        return found[0]

    def events(self) -> list[str]:
        """Reasons of the resource's Events, in their order."""
        return [event["reason"] for event in self.store.list("Event", NAMESPACE)]

    # --- what happens to it ---

    def change(self, change: Callable[[Object], None], annotations: dict[str, str] | None = None) -> FineTuneStatus:
        """The user edits the spec."""
        spec = self.resource["spec"]
        change(spec)
        self.store.write_spec(names.KIND, NAMESPACE, self.name, spec, annotations)
        return self.look()

    def annotate(self, value: str) -> FineTuneStatus:
        """The user sets the retry annotation."""
        return self.change(lambda spec: None, {names.ANNOTATION_RETRY: value})

    def trainer(self, **fields: Any) -> FineTuneStatus:
        """The trainer applies its status fields."""
        meta = {"namespace": NAMESPACE, "name": self.name}
        resource = {"kind": names.KIND, "metadata": meta, "status": fields}
        self.store.apply_status(resource, names.FIELD_MANAGER_TRAINER)
        return self.look()

    def steps(self, step: int) -> FineTuneStatus:
        """The trainer has done a step, and says so."""
        said = {"step": step, "totalSteps": 100, "tokensPerSecond": 500.0, "heartbeat": conditions.rfc3339(self.now)}
        return self.trainer(progress=said)

    def pod_status(self, job: str, status: Object) -> FineTuneStatus:
        """The kubelet writes a pod's status."""
        self.store.write_status("Pod", NAMESPACE, self.pod(job)["metadata"]["name"], status)
        return self.look()

    def runs(self, job: str) -> FineTuneStatus:
        """The pod of a Job runs."""
        state = {"running": {"startedAt": conditions.rfc3339(self.now)}}
        return self.pod_status(job, {"phase": "Running", "containerStatuses": [{"name": "trainer", "state": state}]})

    def ends(self, job: str, code: int, message: Object | str = "", reason: str = "") -> FineTuneStatus:
        """The container of a Job's pod ends."""
        return self.pod_status(job, ended(code, message, reason, self.now))

    def prepared(self, number: int = 1) -> FineTuneStatus:
        """Looks, and lets a preparation succeed."""
        self.look()
        return self.ends(f"{self.name}-p{number}", 0, PREPARED)

    def training(self) -> FineTuneStatus:
        """Comes to a first attempt that runs."""
        self.prepared()
        return self.runs(f"{self.name}-t1")

    def event(self, about: Object, reason: str, message: str) -> FineTuneStatus:
        """A controller records an Event about an object."""
        self.store.record_event(about, "Warning", reason, message)
        return self.wait(60)

    def gone(self, job: str) -> FineTuneStatus:
        """Someone deletes a Job; its pod is gone too."""
        self.store.remove("Job", NAMESPACE, job)
        for pod in self.store.list("Pod", NAMESPACE):
            if pod["metadata"]["name"].startswith(f"{job}-"):
                self.store.remove("Pod", NAMESPACE, pod["metadata"]["name"])
        return self.look()


class Moody:
    """The embedded cluster with faults: `fault` is asked before each call."""

    def __init__(self, inner: Any, fault: Callable[[str], Exception | None]) -> None:
        self._inner, self._fault = inner, fault
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            self.calls.append(name)
            error = self._fault(name)
            if error is not None:
                raise error
            return await getattr(self._inner, name)(*arguments)

        return call


def ended(code: int, message: Object | str, reason: str, now: datetime) -> Object:
    """Status of a pod whose container has ended."""
    text = message if isinstance(message, str) else json.dumps(message)
    terminated = {
        "exitCode": code,
        "reason": reason or ("Completed" if code == 0 else "Error"),
        "message": text,
        "startedAt": conditions.rfc3339(now - timedelta(seconds=60)),
        "finishedAt": conditions.rfc3339(now),
    }
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "containerStatuses": [{"name": "trainer", "state": {"terminated": terminated}}],
    }
