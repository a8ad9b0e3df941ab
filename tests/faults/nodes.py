"""Faults of nodes: drained, deleted, dead with a pod that cannot end; and one pod of four."""

from __future__ import annotations

from gemmatune_api.names import Reason
from tests.faults.ends import pod_ends
from tests.faults.scene import KWOK_GPU, OWN_GPU, REAL_GPU, Fault, Next, Scene
from tests.support.api import Object
from tests.support.history import Change
from tests.support.kwok import End

SEVERAL = "faults-nodes"
"""The namespace of runs on several nodes; another operator looks after it."""


def disrupted(pod: Object) -> bool:
    """Whether Kubernetes says that it is being disrupted."""
    found = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
    return found.get("DisruptionTarget") == "True"


def drain(scene: Scene) -> Change:
    """The pod is evicted through the API."""
    scene.trains()
    scene.evict()
    return scene.first_pod(disrupted, "DisruptionTarget")


def delete_node(scene: Scene) -> Change:
    """The machine and its Node object are gone; the pod garbage collector notices."""
    agent = scene.own_node()
    scene.trains()
    agent.die()
    scene.api.delete(f"/api/v1/nodes/{agent.name}")
    return scene.first_pod(disrupted, "DisruptionTarget of a pod without a node", seconds=240)


def kill_node(scene: Scene) -> Change:
    """The machine is dead, its Node object stays: the node controller and the taint manager notice."""
    agent = scene.own_node()
    scene.trains()
    agent.die()
    return scene.first_pod(disrupted, "DisruptionTarget of a pod on a dead node", seconds=240)


_FOUR = {"accelerator": {"gpu": {"type": KWOK_GPU, "nodes": 4}}}
NODES = [
    Fault("one-of-four", Reason.CRASHED, Next.BACKS_OFF, pod_ends, namespace=SEVERAL, spec=_FOUR, says="NCCL error",
          end=End("exit", code=1, message="Traceback\nRuntimeError: NCCL error\n", index="2")),
    Fault("one-of-four-disrupted", Reason.PREEMPTED, Next.FREE, pod_ends, namespace=SEVERAL, spec=_FOUR,
          end=End("exit", code=143, disruption="TerminationByKubelet", index="3"), says="TerminationByKubelet"),
    Fault("drained", Reason.PREEMPTED, Next.FREE, drain, says="EvictionByEvictionAPI"),
    Fault("drained-process", Reason.PREEMPTED, Next.FREE, drain, REAL_GPU, says="EvictionByEvictionAPI"),
    Fault("dead-node", Reason.NODE_LOST, Next.FREE, kill_node, OWN_GPU, says="node node-dead-node",
          own_node=True, slow=True),
    Fault("node-deleted", Reason.NODE_LOST, Next.FREE, delete_node, OWN_GPU, says="DeletionByPodGC",
          own_node=True, slow=True),
]  # fmt: skip
