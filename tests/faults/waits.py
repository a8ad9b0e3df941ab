"""Faults that keep an attempt or a preparation from starting, and timers that end it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from gemmatune_api.names import Reason, Role
from gemmatune_operator.conditions import rfc3339
from tests.faults.ends import terminated
from tests.faults.scene import NO_GPU, REAL_GPU, Fault, Next, Play, Scene
from tests.support.api import Object
from tests.support.history import Change
from tests.support.kwok import End

QUOTA, NO_PODS, LIMITED = "faults-quota", "faults-no-pods", "faults-limited"
"""Namespaces: a quota without GPUs, one without pods, and a LimitRange below what a trainer asks for."""
PRICE = 3600
"""Of an hour of KWOK's GPU."""
STALL_SECONDS, DEADLINE_SECONDS, PENDING_SECONDS = 8, 5, 25


def waiting(pod: Object) -> str | None:
    """Why its container waits, beyond the ordinary."""
    found = pod["status"].get("containerStatuses") or [{}]
    reason = found[0].get("state", {}).get("waiting", {}).get("reason")
    return reason if reason not in (None, "ContainerCreating", "PodInitializing") else None


def pod_waits(scene: Scene) -> Change:
    """The first attempt's container cannot start."""
    return scene.first_pod(waiting, "a waiting container")


def unscheduled(scene: Scene) -> Change:
    """The scheduler finds no node."""

    def such(pod: Object) -> bool:
        found = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
        return found.get("PodScheduled") == "False"

    return scene.first_pod(such, "PodScheduled=False")


def not_created(scene: Scene) -> Change:
    """The Job controller may not make the pod: only its Event tells."""
    return scene.first_event("FailedCreate")


def not_mounted(message: str) -> Play:
    """The kubelet cannot mount a volume: only its Event tells."""

    def play(scene: Scene) -> Change:
        scene.first_pod(lambda pod: pod["spec"].get("nodeName"), "a pod with a node")
        scene.first_pod(lambda pod: pod["status"].get("containerStatuses"), "a pod that is being started")
        scene.warn("FailedMount", message, "kubelet")
        return scene.first_event("FailedMount")

    return play


def no_capacity(scene: Scene) -> Change:
    """The autoscaler gets no machine: only its Event tells."""
    unscheduled(scene)
    scene.warn(
        "FailedScaleUp", "Node scale up in zones europe-west4-a failed: GCE out of resources.", "cluster-autoscaler"
    )
    return scene.first_event("FailedScaleUp")


def no_spot_node(scene: Scene) -> float:
    """No spot node comes for provisioning.fallback.afterPending."""
    return scene.waited(DEADLINE_SECONDS, lambda it: it.get("timers", {}).get("pendingSince"), "the wait's beginning")


def pending_deadline(scene: Scene) -> float:
    """No node comes for limits.pendingDeadline."""
    return scene.waited(PENDING_SECONDS, lambda it: it.get("timers", {}).get("pendingSince"), "the wait's beginning")


def deadline(scene: Scene) -> float:
    """The run trains for limits.deadline, or until it has cost limits.maxCost, which is as long here."""

    def began(status: Object) -> str | None:
        time_: str | None = (status.get("attempts") or [{}])[0].get("trainingTime")
        return time_

    return scene.waited(DEADLINE_SECONDS, began, "the training's beginning")


def stall(scene: Scene) -> float:
    """A real process is stopped where it is, after its third step."""
    scene.trains()
    scene.plant.node.pause(scene.namespace, scene.pod_name())
    now = rfc3339(datetime.now(UTC))
    scene.trainer(progress={"step": 3, "totalSteps": 100, "tokensPerSecond": 500.0, "heartbeat": now})
    return time.monotonic() + STALL_SECONDS


def prepare_ends(scene: Scene) -> Change:
    """The preparation's container ends by itself."""
    return scene.first_pod(terminated, "the preparation's end", "p1")


def prepare_waits(scene: Scene) -> Change:
    """The preparation's container cannot start."""
    return scene.first_pod(waiting, "a waiting preparation", "p1")


_NOT_FOUND = 'failed to pull and unpack image "example.com/x:1": not found'
_DENIED = 'failed to pull and unpack image "example.com/x:1": pull access denied: 401 Unauthorized'
_PREPARE = {"role": Role.PREPARE}
WAITS = [
    Fault("image-pull", Reason.IMAGE_PULL_FAILED, Next.WAITS, pod_waits, says="not found",
          end=End("wait", reason="ErrImagePull", message=_NOT_FOUND)),
    Fault("image-back-off", Reason.IMAGE_PULL_FAILED, Next.WAITS, pod_waits, says="Back-off",
          end=End("wait", reason="ImagePullBackOff", message="Back-off pulling image")),
    Fault("image-unauthorised", Reason.IMAGE_PULL_FAILED, Next.WAITS, pod_waits, says="401",
          end=End("wait", reason="ErrImagePull", message=_DENIED)),
    Fault("image-name", Reason.IMAGE_PULL_FAILED, Next.WAITS, pod_waits, says="InvalidImageName",
          end=End("wait", reason="InvalidImageName", message='couldn\'t parse image name "A B": invalid reference')),
    Fault("secret-missing", Reason.SECRET_MISSING, Next.WAITS, pod_waits, REAL_GPU, says="no-such-secret",
          spec={"model": {"uri": "hf://google/gemma-2-2b", "secretRef": {"name": "no-such-secret"}}}),
    Fault("secret-key-missing", Reason.SECRET_MISSING, Next.WAITS, pod_waits, REAL_GPU, says="no-such-key",
          spec={"model": {"uri": "hf://google/gemma-2-2b", "secretRef": {"name": "known", "key": "no-such-key"}}}),
    Fault("secret-not-mounted", Reason.SECRET_MISSING, Next.WAITS,
          not_mounted('MountVolume.SetUp failed for volume "x" : secret "hf-token" not found'), says="hf-token",
          end=End("wait", reason="ContainerCreating")),
    Fault("volume-not-mounted", Reason.PROVISIONING, Next.WAITS,
          not_mounted('MountVolume.SetUp failed for volume "y" : configmap "odd" not found'), says="cannot be mounted",
          end=End("wait", reason="ContainerCreating")),
    Fault("unschedulable", Reason.UNSCHEDULABLE, Next.WAITS, unscheduled, NO_GPU, says="nodes are available"),
    Fault("quota", Reason.QUOTA_EXCEEDED, Next.WAITS, not_created, namespace=QUOTA, says="exceeded quota"),
    Fault("limit-range", Reason.POLICY_DENIED, Next.WAITS, not_created, namespace=LIMITED,
          says="cpu limit"),
    Fault("no-capacity", Reason.CAPACITY_UNAVAILABLE, Next.WAITS, no_capacity, NO_GPU, says="out of resources"),
    Fault("no-spot-node", Reason.CAPACITY_UNAVAILABLE, Next.FALLBACK, no_spot_node, NO_GPU, says="No spot node",
          spec={"provisioning": {"mode": "spot", "fallback": {"afterPending": f"{DEADLINE_SECONDS}s"}}}),
    Fault("pending-deadline", Reason.DEADLINE_EXCEEDED, Next.FAILED, pending_deadline, NO_GPU,
          says="limits.pendingDeadline", spec={"limits": {"pendingDeadline": f"{PENDING_SECONDS}s"}}),
    Fault("deadline", Reason.DEADLINE_EXCEEDED, Next.FAILED, deadline, says="limits.deadline",
          spec={"limits": {"deadline": f"{DEADLINE_SECONDS}s"}}),
    Fault("max-cost", Reason.BUDGET_EXCEEDED, Next.FAILED, deadline, says="limits.maxCost",
          spec={"limits": {"maxCost": DEADLINE_SECONDS * PRICE / 3600}}),
    Fault("prepare-data-invalid", Reason.DATA_INVALID, Next.PREPARE_FAILED, prepare_ends, says="row 7",
          end=End("exit", Role.PREPARE, code=12, message='{"message": "row 7 has no text", "remedy": "Mend it."}')),
    Fault("prepare-crash", Reason.CRASHED, Next.PREPARE_COUNTED, prepare_ends, says="boom",
          end=End("exit", Role.PREPARE, code=1, message="Traceback\nboom\n")),
    Fault("prepare-disrupted", Reason.PREEMPTED, Next.PREPARE_FREE, prepare_ends, says="EvictionByEvictionAPI",
          end=End("exit", Role.PREPARE, code=143, disruption="EvictionByEvictionAPI")),
    Fault("prepare-image", Reason.IMAGE_PULL_FAILED, Next.PREPARE_WAITS, prepare_waits, says="not found",
          end=End("wait", Role.PREPARE, reason="ErrImagePull", message=_NOT_FOUND)),
    Fault("stall", Reason.STALLED, Next.COUNTED, stall, REAL_GPU, says="step 3", slow=True,
          spec={"limits": {"stallTimeout": f"{STALL_SECONDS}s"}}),
    Fault("prepare-quota", Reason.QUOTA_EXCEEDED, Next.PREPARE_WAITS, not_created, namespace=NO_PODS,
          says="exceeded quota"),
]  # fmt: skip
