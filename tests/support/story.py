"""Stories of runs on the real control plane: steps that are taken when they are due, whatever disturbs the operator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import requests

from gemmatune_api import names
from gemmatune_operator.conditions import rfc3339
from tests.support.api import ApiError, Object
from tests.support.play import PREPARED
from tests.support.stage import Stage
from tests.support.wait import wait_for

DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}
ARTIFACTS = {"adapter": "gs://bucket/quotes/adapter", "merged": "gs://bucket/quotes/merged"}
_AWAY = (requests.ConnectionError, requests.Timeout)


@dataclass(frozen=True)
class Step:
    """One thing that happens to a run: `phase` must have been reached, and the pods of `job` must exist."""

    what: str
    act: Callable[[Stage], object]
    phase: str = ""
    job: str = ""
    pods: int = 1


@dataclass(frozen=True)
class Plot:
    """A story: how the resource is made, what happens to it, and how it ends."""

    name: str
    steps: tuple[Step, ...]
    spec: Mapping[str, Any] = field(default_factory=dict)
    phase: str = "Succeeded"
    jobs: tuple[str, ...] = ()
    """Jobs that it makes."""
    hosts: int = 1
    """Pods of each attempt; preparations and merges have one."""
    counters: tuple[int, int, int, int] = (0, 0, 0, 0)
    """attempts, retries, preemptions, outOfMemory."""
    reasons: tuple[str, ...] = ()
    """Of its attempts' ends."""


def runs(job: str) -> Step:
    """The pod of a Job runs."""
    return Step(f"{job} runs", lambda stage: stage.runs_now(job), job=job)


def ends(job: str, code: int, message: Object | str = "", reason: str = "") -> Step:
    """The container of a Job's pod ends, once the status says that the Job is there."""
    phase = {"p": "Preparing", "t": "Training", "m": "Merging"}[job[0]]
    return Step(f"{job} exits {code}", lambda stage: stage.ends(job, code, message, reason), phase, job)


def disrupted(job: str) -> Step:
    """The pod of a Job is preempted."""

    def act(stage: Stage) -> None:
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": "preempted",
            "lastTransitionTime": rfc3339(datetime.now(UTC)),
        }
        stage.pod_status(job, {"conditions": [condition]})
        stage.ends(job, 143)

    return Step(f"{job} is preempted", act, "Training", job)


def prepared(job: str = "p1") -> Step:
    """The preparation succeeds."""
    return ends(job, 0, PREPARED)


def on_all(job: str, what: str, act: Callable[[Stage, str], object], phase: str = "") -> Step:
    """Something happens to both pods of an attempt on two nodes."""

    def each(stage: Stage) -> None:
        for pod in stage.pods_of(job):
            act(stage, pod["metadata"]["name"])

    return Step(f"{job} {what}", each, phase, job, 2)


INTERRUPTED = Plot(
    "interrupted",
    (
        prepared(),
        runs("t1"),
        ends("t1", 30, {"message": "asked to stop", "step": 7}),
        runs("t2"),
        Step("suspend", lambda stage: stage.change(suspend=True), "Training", "t2"),
        Step("resume", lambda stage: stage.change(suspend=False), "Suspended"),
        runs("t3"),
        ends("t3", 0, DONE),
    ),
    jobs=("p1", "t1", "t2", "t3"),
    counters=(3, 0, 1, 0),
    reasons=("Interrupted", "Suspended", "Completed"),
)
CORRECTED = Plot(
    "corrected",
    (
        ends("p1", 12, {"message": "row 7 has no column 'quote'"}),
        Step("correct", lambda stage: stage.change(dataset={"text": {"template": "{text}"}}), "Failed"),
        prepared("p2"),
        runs("t1"),
        ends("t1", 137),
        Step("ask for a retry", lambda stage: stage.annotate("1"), "Failed"),
        runs("t2"),
        ends("t2", 0, DONE),
    ),
    {"limits": {"maxRetries": 0}},
    jobs=("p1", "p2", "t1", "t2"),
    counters=(2, 0, 0, 0),
    reasons=("Killed", "Completed"),
)
FALLBACK = Plot(
    "fallback",
    (
        prepared(),
        runs("t1"),
        disrupted("t1"),
        runs("t2"),
        ends("t2", 20, {"message": "CUDA out of memory", "step": 4}),
        runs("t3"),
        ends("t3", 137, "", "OOMKilled"),
        runs("t4"),
        ends("t4", 10, {"message": "no such field"}),
    ),
    {"provisioning": {"mode": "spot", "fallback": {"mode": "onDemand", "afterPreemptions": 1}}},
    phase="Failed",
    jobs=("p1", "t1", "t2", "t3", "t4"),
    counters=(4, 1, 1, 1),
    reasons=("Preempted", "AcceleratorOutOfMemory", "HostOutOfMemory", "InvalidConfig"),
)
SIMPLE = Plot(
    "simple",
    (prepared(), runs("t1"), ends("t1", 0, DONE)),
    jobs=("p1", "t1"),
    counters=(1, 0, 0, 0),
    reasons=("Completed",),
)
MERGED = Plot(
    "merged",
    (
        prepared(),
        runs("t1"),
        ends("t1", 0, DONE),
        runs("m1"),
        ends("m1", 30, {"message": "asked to stop"}),
        runs("m2"),
        Step("suspend", lambda stage: stage.change(suspend=True), "Merging", "m2"),
        Step("resume", lambda stage: stage.change(suspend=False), "Suspended"),
        runs("m3"),
        ends("m3", 12, {"message": "the adapter is damaged"}),
        Step("ask for a retry", lambda stage: stage.annotate("1"), "Failed"),
        runs("m4"),
        Step("the trainer names the weights", lambda stage: stage.trainer(artifacts=ARTIFACTS), "Merging", "m4"),
        ends("m4", 0, {"message": "merged", "manifest": f"{ARTIFACTS['merged']}/manifest.json"}),
    ),
    {"output": {"uri": "gs://bucket/quotes", "merge": True}},
    jobs=("p1", "t1", "m1", "m2", "m3", "m4"),
    counters=(1, 0, 0, 0),
    reasons=("Completed",),
)
WIDE = Plot(
    "wide",
    (
        prepared(),
        on_all("t1", "runs", lambda stage, pod: stage.runs_now("t1", pod)),
        Step(
            "its Job is deleted, and its pods stay",
            lambda stage: stage.api.delete(f"{stage.jobs}/{stage.name}-t1", {"propagationPolicy": "Orphan"}),
            "Training",
        ),
        on_all("t2", "runs", lambda stage, pod: stage.runs_now("t2", pod)),
        on_all("t2", "exits 0", lambda stage, pod: stage.ends("t2", 0, DONE, pod=pod), "Training"),
    ),
    {"accelerator": {"gpu": {"type": "nvidia-l4", "nodes": 2}}},
    jobs=("p1", "t1", "t2"),
    hosts=2,
    counters=(2, 1, 0, 0),
    reasons=("JobVanished", "Completed"),
)
PLOTS = (INTERRUPTED, CORRECTED, FALLBACK, MERGED, WIDE)


class Story:
    """A plot that is being played in a namespace; keeps every Job and pod that was ever seen."""

    def __init__(self, stage: Stage, plot: Plot) -> None:
        self.stage, self.plot = stage, plot
        self.done: list[str] = []
        self.pods: dict[str, set[str]] = {}
        self.made: dict[str, set[str]] = {}

    def create(self) -> Story:
        """Makes the resource."""
        self.stage.create(**self.plot.spec)
        return self

    def play(self) -> bool:
        """Takes the next step if it is due; whether the story is at its end. A server that is away is no step."""
        try:
            return self._play()
        except _AWAY:
            return False
        except ApiError as error:
            if error.status in (401, 403, 429) or error.status >= 500:
                return False
            raise

    def _play(self) -> bool:
        self.count()
        phase = self.stage.status.get("phase", "")
        if len(self.done) == len(self.plot.steps):
            return bool(phase == self.plot.phase)
        step = self.plot.steps[len(self.done)]
        if step.phase in ("", phase) and (not step.job or len(self.pods.get(step.job, ())) >= step.pods):
            step.act(self.stage)
            self.done.append(step.what)
        return False

    def count(self) -> None:
        """Notes the Jobs and pods of this run that exist."""
        selector = f"{names.LABEL_RUN}={self.stage.name}"
        prefix = f"{self.stage.name}-"
        for job in self.stage.api.get(self.stage.jobs, labelSelector=selector)["items"]:
            name = job["metadata"]["name"].removeprefix(prefix)
            self.made.setdefault(name, set()).add(job["metadata"]["uid"])
        for pod in self.stage.api.get(self.stage.pods, labelSelector=selector)["items"]:
            name = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"].removeprefix(prefix)
            self.pods.setdefault(name, set()).add(pod["metadata"]["uid"])

    def to_the_end(self, seconds: float = 120.0, beside: Callable[[], object] = lambda: None) -> Story:
        """Plays on until the end; `beside` is called before each try."""

        def look() -> bool:
            beside()
            return self.play()

        wait_for(look, f"the {self.plot.name} story to end", seconds=seconds, interval=0.1, detail=self.detail)
        return self

    def to(self, step: str, seconds: float = 60.0) -> Story:
        """Plays on until a step is done."""
        wait_for(lambda: self.play() or step in self.done, f"{step!r}", seconds=seconds, detail=self.detail)
        return self

    def detail(self) -> str:
        """Where it stands."""
        try:
            told = "; ".join([*self._objects(), json.dumps(self.stage.status)[:3000]])
        except (*_AWAY, ApiError) as error:
            told = str(error)
        return f"done {self.done}; Jobs {sorted(self.made)}; {told}"

    def _objects(self) -> list[str]:
        """What the Jobs and pods that exist say of themselves."""
        jobs = self.stage.api.get(self.stage.jobs)["items"]
        pods = self.stage.api.get(self.stage.pods)["items"]
        return [f"{item['metadata']['name']}: {json.dumps(item.get('status'))[:1500]}" for item in (*jobs, *pods)]

    def check(self) -> None:
        """No Job doubled or lost, one pod each, none orphaned; counters and causes as undisturbed; no Event twice."""
        self.count()
        plot, status = self.plot, self.stage.status
        assert sorted(self.made) == sorted(plot.jobs), "Jobs that were made"
        assert {name: len(uids) for name, uids in self.made.items()} == dict.fromkeys(plot.jobs, 1), "a Job was doubled"
        pods = {job: plot.hosts if job.startswith("t") else 1 for job in plot.jobs}
        assert {name: len(uids) for name, uids in self.pods.items()} == pods, "a pod was doubled"
        attempts, retries, preemptions, memory = plot.counters
        assert status["counters"] == {
            "attempts": attempts,
            "retries": retries,
            "preemptions": preemptions,
            "outOfMemory": memory,
            "stalls": 0,
        }
        assert tuple(item["reason"] for item in status["attempts"]) == plot.reasons
        assert [item["number"] for item in status["attempts"]] == list(range(1, attempts + 1))
        assert self.orphans() == []
        told = [(event["reason"], event["message"]) for event in self.stage.events()]
        unsure = {"Unschedulable", "Provisioning", "Preparing", "QuotaExceeded"}  # may come and go while a pod waits
        told = [event for event in told if event[0] not in unsure]
        assert len(told) == len(set(told)), f"an Event was repeated: {told}"

    def orphans(self) -> list[str]:
        """Pods of this run that have not ended although no Job owns them."""
        jobs = {job["metadata"]["uid"] for job in self.stage.api.get(self.stage.jobs)["items"]}
        return [
            pod["metadata"]["name"]
            for pod in self.stage.api.get(self.stage.pods)["items"]
            if pod["status"].get("phase") not in ("Succeeded", "Failed")
            and not {owner["uid"] for owner in pod["metadata"].get("ownerReferences", [])} & jobs
        ]
