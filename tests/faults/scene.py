"""One run and one fault: what a fault is, and the stage on which it is provoked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from gemmatune_api import names
from gemmatune_api.names import Reason
from gemmatune_operator.conditions import parse_time
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.history import Change, History, Holds
from tests.support.kwok import End
from tests.support.nodeagent import NodeAgent
from tests.support.stage import Stage

KWOK_GPU = "nvidia-l4"
"""KWOK's nodes have this one."""
REAL_GPU = "nvidia-a100-80gb"
"""Pods on nodes with this one are processes."""
OWN_GPU = "nvidia-h100-80gb"
"""Of nodes that end with their run: no other run's pod is scheduled to one of them."""
NO_GPU = "nvidia-tesla-t4"
"""No node has this one."""
GPU_TAINT: Object = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
GPU_LABEL = "cloud.google.com/gke-accelerator"
NODE_LABEL = "fault.test/node"
SHARED = "faults"
"""The namespace of most runs."""


class Next(StrEnum):
    """What a cause decides, as the table has it."""

    COUNTED = "counted: one retry is used, the next attempt follows at once"
    BACKS_OFF = "counted: one retry is used, the next attempt follows after a pause"
    FREE = "free: one preemption is used, the next attempt follows at once"
    FREE_LATER = "free: one preemption is used, the next attempt follows after a pause"
    DOWNSHIFT = "neither is used: the next attempt needs less memory"
    FALLBACK = "neither is used: the next attempt runs on demand"
    FAILED = "the run is Failed at once"
    WAITS = "the attempt goes on, the condition says why it waits"
    PREPARE_COUNTED = "another preparation follows, one of its retries is used"
    PREPARE_FREE = "another preparation follows, one preemption is used"
    PREPARE_FAILED = "the run is Failed at once, before any attempt"
    PREPARE_WAITS = "the preparation goes on, the condition says why it waits"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and what the resource must say then.

    `play` makes it happen and answers with the first change of an object that reveals it, or with the moment (monotonic
    seconds) at which a timer has run out.
    """

    name: str
    reason: Reason
    next: Next
    play: Play
    gpu: str = KWOK_GPU
    end: End | None = None
    """How the first pod ends on KWOK's nodes."""
    process: str = "run"
    """What the first attempt's process does on the test node."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespace: str = SHARED
    own_node: bool = False
    """Whether its attempts run on a node of their own, which `play` starts."""
    says: str = ""
    """Words that the message must have."""
    slow: bool = False
    """Whether it takes minutes."""


@dataclass(frozen=True)
class Plant:
    """What all faults share."""

    control_plane: ControlPlane
    history: History
    node: NodeAgent
    folder: Path
    environment: Mapping[str, str]
    """Of the processes on test nodes."""


class Scene(Stage):
    """One resource of its own name in a namespace of many."""

    def __init__(self, plant: Plant, fault: Fault, number: int) -> None:
        super().__init__(plant.control_plane.api, fault.namespace, f"{fault.name}-{number}")
        self.plant, self.fault = plant, fault
        self.key = (self.namespace, self.name)
        self._agents: list[NodeAgent] = []

    def begin(self) -> None:
        """Creates the resource."""
        fault = self.fault
        end = fault.end.annotations() if fault.end is not None else {}
        pod = {
            "annotations": {**end, **fault.annotations},
            "env": [{"name": "FAULT", "value": fault.process}],
            **({"nodeSelector": {NODE_LABEL: self.name}} if fault.own_node else {}),
        }
        spec = {"accelerator": {"gpu": {"type": fault.gpu}}, **fault.spec, "pod": pod}
        self.create(**spec)

    def close(self) -> None:
        """Removes the resource and what was made for it."""
        self.api.delete(f"{self.runs}/{self.name}")
        for agent in self._agents:
            agent.stop()

    def own_node(self) -> NodeAgent:
        """A node that only this run's attempts use."""
        agent = NodeAgent(
            self.plant.control_plane,
            self.plant.folder / self.name,
            f"node-{self.name}",
            labels={GPU_LABEL: OWN_GPU, NODE_LABEL: self.name},
            taints=[GPU_TAINT],
            resources={"cpu": "64", "memory": "1Ti", "nvidia.com/gpu": "2"},
            environment=self.plant.environment,
        )
        self._agents.append(agent.start())
        return agent

    def job_names_of_run(self) -> list[str]:
        """The run's Jobs that exist."""
        found = self.api.get(self.jobs, labelSelector=f"{names.LABEL_RUN}={self.name}")["items"]
        return sorted(item["metadata"]["name"] for item in found)

    def told_by_objects(self) -> dict[str, Object | None]:
        """What the run's Jobs and pods say of themselves."""
        selector = f"{names.LABEL_RUN}={self.name}"
        found: dict[str, Object | None] = {}
        for path in (self.jobs, self.pods):
            for item in self.api.get(path, labelSelector=selector)["items"]:
                found[item["metadata"]["name"]] = item.get("status")
        return found

    # --- what happened ---

    def first(self, holds: Holds, what: str, seconds: float = 120.0) -> Change:
        """The first change of the run or of its objects that is such, awaited."""
        return self.plant.history.first(self.key, holds, what, seconds)

    def first_pod(
        self, holds: Callable[[Object], Any], what: str, suffix: str = "t1", seconds: float = 120.0
    ) -> Change:
        """The first such change of a pod of a Job."""
        job = f"{self.name}-{suffix}"
        return self.first(lambda it: it.kind == "Pod" and _job(it) == job and holds(it.object), what, seconds)

    def first_event(self, reason: str) -> Change:
        """The first Event of a reason about a Job or a pod of the run."""

        def such(change: Change) -> bool:
            about = change.object.get("involvedObject", {})
            return change.kind == "Event" and change.object["reason"] == reason and about["kind"] != names.KIND

        return self.first(such, f"the Event {reason}")

    def trains(self) -> Change:
        """Attempt 1 is Training."""
        return self.first(lambda it: it.kind == names.KIND and it.status.get("phase") == "Training", "Training")

    def waited(self, seconds: float, since: Callable[[Object], str | None], what: str) -> float:
        """The monotonic moment `seconds` after a time that the status shows."""
        shown = self.first(lambda it: it.kind == names.KIND and since(it.status), what)
        return self.after(str(since(shown.status)), seconds)

    @staticmethod
    def after(text: str, seconds: float) -> float:
        """The monotonic moment `seconds` after a time as Kubernetes writes it."""
        moment = parse_time(text)
        assert moment is not None
        return time.monotonic() + seconds - (datetime.now(UTC) - moment).total_seconds()

    # --- what is done ---

    def pod_name(self, suffix: str = "t1") -> str:
        """The name of the only pod of a Job."""
        return str(self.pod(suffix)["metadata"]["name"])

    def evict(self) -> None:
        """What `kubectl drain` does to a pod."""
        name = self.pod_name()
        metadata = {"name": name, "namespace": self.namespace}
        self.api.create(
            f"{self.pods}/{name}/eviction", {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        )

    def warn(self, reason: str, message: str, component: str, type_: str = "Warning") -> None:
        """Posts an Event about the first attempt's pod, as the component does."""
        pod, now = self.pod("t1")["metadata"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": pod["name"], "uid": pod["uid"]}
        event = {
            "metadata": {"generateName": f"{pod['name']}.", "namespace": self.namespace},
            "involvedObject": about,
            "type": type_,
            "reason": reason,
            "message": message,
            "source": {"component": component},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self.api.create(f"/api/v1/namespaces/{self.namespace}/events", event)


def _job(change: Change) -> str:
    labels = change.object["metadata"].get("labels") or {}
    return str(labels.get("batch.kubernetes.io/job-name"))


Play = Callable[[Scene], Change | float]
