"""Attempts with several pods on the real control plane: names, one node pool per slice, and one lost pod."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gemmatune_api import gke
from gemmatune_operator.conditions import rfc3339
from tests.support import below
from tests.support.api import STRATEGIC, Object
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.play import PREPARED, ended
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster

FOUR_NODES = {"gpu": {"type": "nvidia-l4", "nodes": 4}}
TWO_HOSTS = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4", "chipsPerNode": 4}}
SECONDS = 90.0
INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture(scope="module")
def operator(crd: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """An operator below the check for what is not built yet."""
    log: Path = tmp_path_factory.mktemp("operator") / "operator.log"
    process = OperatorProcess(crd.operator_kubeconfig, log, command=below.PROCESS)
    try:
        yield process.ready()
    finally:
        process.stop()
    assert "Traceback" not in log.read_text(), log.read_text()[-8000:]


@pytest.fixture
def stage(operator: OperatorProcess, crd: ControlPlane, namespace: str) -> Stage:
    """A resource that is not created yet."""
    return Stage(crd.api, namespace)


def pods_of(stage: Stage, suffix: str, count: int) -> list[Object]:
    """Waits for the pods of a Job, in the order of their indexes."""
    selector = f"batch.kubernetes.io/job-name={stage.name}-{suffix}"

    def look() -> list[Object] | None:
        found: list[Object] = stage.api.get(stage.pods, labelSelector=selector)["items"]
        return found if len(found) >= count else None

    stage.job(suffix)
    found = wait_for(look, f"{count} pods of {suffix}", seconds=SECONDS, detail=lambda: str(stage.status)[:2000])
    assert found is not None
    return sorted(found, key=lambda pod: int(pod["metadata"]["annotations"][INDEX]))


def to_attempt(stage: Stage, accelerator: Object) -> str:
    """Creates the resource and plays its preparation; its UID."""
    uid: str = stage.create(accelerator=accelerator)["metadata"]["uid"]
    stage.ends("p1", 0, PREPARED)
    return uid


def test_four_pods_are_told_who_they_are(stage: Stage) -> None:
    uid = to_attempt(stage, FOUR_NODES)
    pods = pods_of(stage, "t1", 4)
    service = stage.api.get(f"/api/v1/namespaces/{stage.namespace}/services/quotes-t1")
    assert service["metadata"]["ownerReferences"][0]["uid"] == uid
    assert service["spec"]["clusterIP"] == "None"
    labels = service["spec"]["selector"].items()
    for index, pod in enumerate(pods):
        assert pod["metadata"]["name"][:-6] == f"quotes-t1-{index}"
        assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == (f"quotes-t1-{index}", "quotes-t1")
        assert labels <= pod["metadata"]["labels"].items()
        (container,) = pod["spec"]["containers"]
        # The kubelet puts the value of this variable into --node=$(JOB_COMPLETION_INDEX).
        assert "JOB_COMPLETION_INDEX" in [variable["name"] for variable in container["env"]]
        assert "--node=$(JOB_COMPLETION_INDEX)" in container["command"]
    stage.api.call("DELETE", f"{stage.runs}/{stage.name}")
    gone = f"/api/v1/namespaces/{stage.namespace}/services/quotes-t1"
    wait_for(lambda: stage.api.find(gone) is None, "the Service to go with its resource", seconds=SECONDS)


def fails(code: int) -> Callable[[Stage, Object], None]:
    def end(stage: Stage, pod: Object) -> None:
        status = ended(code, "", "", datetime.now(UTC))
        status["containerStatuses"][0] |= {"image": "x", "imageID": "x", "ready": False, "restartCount": 0}
        stage.api.patch(f"{stage.pods}/{pod['metadata']['name']}/status", {"status": status}, STRATEGIC)

    return end


def disrupted(stage: Stage, pod: Object) -> None:
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "preempted",
        "lastTransitionTime": rfc3339(datetime.now(UTC)),
    }
    status = {"phase": "Failed", "conditions": [condition]}
    stage.api.patch(f"{stage.pods}/{pod['metadata']['name']}/status", {"status": status}, STRATEGIC)


def deleted(stage: Stage, pod: Object) -> None:
    stage.api.call("DELETE", f"{stage.pods}/{pod['metadata']['name']}")


@pytest.mark.parametrize(
    ("loses", "reason"),
    [(fails(20), "AcceleratorOutOfMemory"), (fails(137), "Killed"), (disrupted, "Preempted"), (deleted, "PodLost")],
    ids=["exit-20", "exit-137", "disrupted", "deleted"],
)
def test_one_lost_pod_of_four_ends_the_attempt(
    stage: Stage, loses: Callable[[Stage, Object], None], reason: str
) -> None:
    """No index gets a second pod; the other pods go; the next attempt has a Service of its own."""
    to_attempt(stage, FOUR_NODES)
    pods = pods_of(stage, "t1", 4)
    seen: dict[str, set[str]] = defaultdict(set)

    def closed() -> bool:
        for pod in stage.api.get(stage.pods, labelSelector="batch.kubernetes.io/job-name=quotes-t1")["items"]:
            seen[pod["metadata"]["annotations"][INDEX]].add(pod["metadata"]["uid"])
        attempts = stage.status.get("attempts") or []
        return len(attempts) == 2 and bool(attempts[0].get("endTime"))

    closed()
    loses(stage, pods[2])
    wait_for(closed, "the attempt to end", seconds=SECONDS, detail=lambda: str(stage.status)[:4000])
    assert stage.status["attempts"][0]["reason"] == reason
    assert {index: len(uids) for index, uids in seen.items()} == {"0": 1, "1": 1, "2": 1, "3": 1}
    pods_of(stage, "t2", 4)
    assert stage.api.find(f"/api/v1/namespaces/{stage.namespace}/services/quotes-t2") is not None
    left = stage.api.get(stage.pods, labelSelector="batch.kubernetes.io/job-name=quotes-t1")["items"]
    assert [pod["status"]["phase"] for pod in left if pod["status"]["phase"] != "Failed"] == []


def test_a_service_of_somebody_else_is_left_alone(stage: Stage, operator: OperatorProcess) -> None:
    services = f"/api/v1/namespaces/{stage.namespace}/services"
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "quotes-t1"}}
    foreign["spec"] = {"clusterIP": "None", "selector": {"app": "theirs"}}
    stage.api.create(services, foreign)
    to_attempt(stage, FOUR_NODES)
    status = stage.wait(
        lambda status: any(item["reason"] == "NameConflict" for item in status.get("conditions") or []),
        "NameConflict",
        SECONDS,
    )
    told = next(item for item in status["conditions"] if item["reason"] == "NameConflict")
    assert told["message"] == "A Service quotes-t1 exists that this run does not own."
    assert stage.job_names() == ["quotes-p1"]
    assert stage.api.get(f"{services}/quotes-t1")["spec"]["selector"] == {"app": "theirs"}
    stage.api.call("DELETE", f"{services}/quotes-t1")
    pods_of(stage, "t1", 4)


@pytest.fixture
def slices(crd: ControlPlane) -> Iterator[None]:
    """Two node pools, each a TPU slice of two hosts with four chips."""
    nodes = [(f"{pool}-{number}", pool) for pool in ("pool-a", "pool-b") for number in range(2)]
    for name, pool in nodes:
        labels = {
            gke.NODE_POOL: pool,
            gke.TPU_TYPE: "tpu-v5-lite-podslice",
            gke.TPU_TOPOLOGY: "2x4",
            gke.ACCELERATOR_COUNT: "4",
        }
        taints = [{"key": gke.TPU, "value": "present", "effect": "NoSchedule"}]
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        crd.api.create("/api/v1/nodes", {**node, "spec": {"taints": taints}})
        offer = {"cpu": "112", "memory": "187Gi", "ephemeral-storage": "49Gi", "pods": "110", gke.TPU: "4"}
        heard = rfc3339(datetime.now(UTC))
        ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": heard, "lastTransitionTime": heard}
        status = {"capacity": offer, "allocatable": offer, "conditions": [ready]}
        crd.api.patch(f"/api/v1/nodes/{name}/status", {"status": status}, STRATEGIC)
    yield
    for name, _ in nodes:
        crd.api.call("DELETE", f"/api/v1/nodes/{name}")


def test_the_scheduler_gives_every_attempt_a_slice_of_its_own(
    operator: OperatorProcess, crd: ControlPlane, make_namespace: Callable[..., str], slices: None
) -> None:
    """Two runs of two namespaces that start at the same time: without affinity each could hold half of both slices."""
    stages = [Stage(crd.api, make_namespace()) for _ in range(2)]
    for stage in stages:
        stage.create(accelerator=TWO_HOSTS)
    for stage in stages:
        stage.ends("p1", 0, PREPARED)

    def placed() -> list[list[str]] | None:
        nodes = [[str(pod["spec"].get("nodeName", "")) for pod in pods_of(stage, "t1", 2)] for stage in stages]
        return nodes if all(all(names) for names in nodes) else None

    nodes = wait_for(placed, "all pods to have nodes", seconds=SECONDS)
    assert nodes is not None
    assert sorted(sorted(names) for names in nodes) == [["pool-a-0", "pool-a-1"], ["pool-b-0", "pool-b-1"]]
    third = Stage(crd.api, make_namespace())
    to_attempt(third, TWO_HOSTS)
    pods_of(third, "t1", 2)
    told = third.wait(
        lambda status: any(item["reason"] == "Unschedulable" for item in status.get("conditions") or []),
        "Unschedulable",
        SECONDS,
    )
    assert told["phase"] == "Provisioning"
