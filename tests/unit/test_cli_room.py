"""`gft doctor` on attempts of several pods, and on quotas that count other pods: what it says is what would happen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from gemmatune_cli import quotascopes
from tests.support.oddapi import Answer
from tests.support.oddgft import gft, healthy

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "examples/shapes"
SLICE = ROOT / "tests/golden/manifests/tpu-keras-mesh.yaml"
H100 = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
V5E = {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
    "cloud.google.com/gke-accelerator-count": "4",
}
POOL = "cloud.google.com/gke-nodepool"
LARGE = {"cpu": "400", "memory": "4Ti", "ephemeral-storage": "10Ti"}


def node(name: str, labels: dict[str, str], **devices: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "status": {"allocatable": {**LARGE, **devices}}}


def gpus(number: int, each: str = "8") -> list[dict[str, Any]]:
    return [node(f"gpu-{index}", H100, **{"nvidia.com/gpu": each}) for index in range(number)]


def slices(*hosts: int) -> list[dict[str, Any]]:
    """Node pools of a 4x4 slice, with so many hosts each."""
    return [
        node(f"tpu-{pool}-{index}", {**V5E, POOL: f"pool-{pool}"}, **{"google.com/tpu": "4"})
        for pool, number in enumerate(hosts)
        for index in range(number)
    ]


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **scopes: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "team"},
        "spec": {"hard": hard, **scopes},
        "status": {"hard": hard, "used": used or {}},
    }


def doctor(
    serve: Any, file: str | Path, *, nodes: Sequence[dict[str, Any]] = (), quotas: Sequence[dict[str, Any]] = ()
) -> list[str]:
    """The lines of doctor on nodes and quotas."""

    def answer(method: str, path: str) -> Answer:
        for kind, items in (("/nodes", nodes), ("/resourcequotas", quotas)):
            if kind in path:
                return 200, {"items": list(items)}
        return healthy(method, path)

    with serve(answer):
        done = gft("doctor", str(SHAPES / file), "--no-pod", "--image", "trainer")
    return [line for line in done.stdout.splitlines() if line.split()[1] in ("nodes", "quota")]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (gpus(2), "ok       nodes           2 nodes can take the 2 pods"),
        (gpus(1, "16"), "ok       nodes           1 nodes can take the 2 pods"),
        (gpus(1), "warning  nodes           the nodes that are there have room for 1 of the 2 pods at once"),
        (gpus(1) + gpus(1, "4"), "warning  nodes           the nodes that are there have room for 1 of the 2 pods"),
        (gpus(2, "4"), "problem  nodes           2 nodes match"),
        ([], "warning  nodes           none of 0 nodes matches"),
    ],
    ids=["two", "one of twice the size", "one", "one and a smaller", "two too small", "none"],
)
def test_nodes_for_two_pods(found: list[dict[str, Any]], says: str, serve: Any) -> None:
    (line, *_) = doctor(serve, "gpu-h100-two-nodes.yaml", nodes=found)
    assert line.startswith(says), line


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        ((4,), "ok       nodes           4 nodes can take the 4 pods"),
        (
            (2, 3),
            f"warning  nodes           the nodes of one {POOL} have room for 3 of the 4 pods at once",
        ),
    ],
)
def test_the_hosts_of_a_slice_are_of_one_node_pool(hosts: tuple[int, ...], says: str, serve: Any) -> None:
    (line, *_) = doctor(serve, SLICE, nodes=slices(*hosts))
    assert line.startswith(says), line


GPUS = "requests.nvidia.com/gpu"


@pytest.mark.parametrize(
    ("hard", "used", "says"),
    [
        ({GPUS: "16"}, {}, "has room"),
        ({GPUS: "8"}, {}, f"has no room: {GPUS} (0 of 8 used, 2 x 8 asked)"),
        ({GPUS: "16"}, {GPUS: "1"}, f"has no room: {GPUS} (1 of 16 used, 2 x 8 asked)"),
        ({"pods": "1"}, {}, "has no room: pods (0 of 1 used, 2 x 1 asked)"),
        ({"count/jobs.batch": "1"}, {}, "has room"),
        ({"services": "0"}, {}, "has no room: services (0 of 0 used, 1 asked)"),
    ],
)
def test_a_quota_for_two_pods(hard: dict[str, str], used: dict[str, str], says: str, serve: Any) -> None:
    line = doctor(serve, "gpu-h100-two-nodes.yaml", quotas=[quota(hard, used)])[-1]
    assert line.endswith(f"team {says}"), line
    assert line.startswith("problem" if "no room" in says else "ok")


def test_one_pod_needs_no_service(serve: Any) -> None:
    (line,) = doctor(serve, "gpu-l4.yaml", quotas=[quota({"services": "0", GPUS: "1", "pods": "1"})])[1:]
    assert line.endswith("team has room")


def term(scope: str, operator: str = "Exists", *values: str) -> dict[str, Any]:
    return {"scopeSelector": {"matchExpressions": [{"scopeName": scope, "operator": operator, "values": list(values)}]}}


@pytest.mark.parametrize(
    ("scopes", "others"),
    [
        ({"scopes": ["Terminating"]}, "Terminating"),
        ({"scopes": ["NotTerminating"]}, ""),
        ({"scopes": ["BestEffort"]}, "BestEffort"),
        ({"scopes": ["NotBestEffort"]}, ""),
        ({"scopes": ["PriorityClass"]}, "PriorityClass"),
        ({"scopes": ["NotBestEffort", "Terminating"]}, "Terminating"),
        (term("PriorityClass", "In", "high", "higher"), "PriorityClass In high or higher"),
        (term("PriorityClass", "NotIn", "high"), ""),
        (term("PriorityClass", "DoesNotExist"), ""),
        (term("CrossNamespacePodAffinity"), "CrossNamespacePodAffinity"),
    ],
    ids=str,
)
def test_a_quota_of_other_pods_is_no_problem(scopes: dict[str, Any], others: str, serve: Any) -> None:
    line = doctor(serve, "gpu-h100-two-nodes.yaml", quotas=[quota({"pods": "0"}, **scopes)])[-1]
    expected = f"team is for other pods ({others})" if others else "team has no room: pods (0 of 0 used, 2 x 1 asked)"
    assert line.endswith(expected), line
    assert line.startswith("ok" if others else "problem")


def test_a_quota_of_pods_that_keep_away_from_other_namespaces(serve: Any) -> None:
    """The pods of a TPU slice do: slices belong to all namespaces."""
    crossing = quota({"pods": "0"}, **term("CrossNamespacePodAffinity"))
    assert doctor(serve, SLICE, quotas=[crossing])[-1].startswith("problem")


@pytest.mark.parametrize(
    ("pod", "scopes", "counted"),
    [
        ({"priorityClassName": "high"}, {"scopes": ["PriorityClass"]}, True),
        ({"priorityClassName": "high"}, term("PriorityClass", "In", "high"), True),
        ({"priorityClassName": "high"}, term("PriorityClass", "NotIn", "high"), False),
        ({"priorityClassName": "high"}, term("PriorityClass", "DoesNotExist"), False),
        ({"activeDeadlineSeconds": 60}, {"scopes": ["Terminating"]}, True),
        ({"activeDeadlineSeconds": 60}, {"scopes": ["NotTerminating"]}, False),
        ({"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}, {"scopes": ["BestEffort"]}, True),
        ({"containers": [{"resources": {"limits": {"memory": "1Gi"}}}]}, {"scopes": ["BestEffort"]}, False),
        ({}, {}, True),
        ({}, {"scopes": ["OfTomorrow"]}, True),
    ],
    ids=str,
)
def test_the_scopes_of_a_pod(pod: dict[str, Any], scopes: dict[str, Any], counted: bool) -> None:
    terms = [
        client.V1ScopedResourceSelectorRequirement(
            scope_name=item["scopeName"], operator=item["operator"], values=values
        )
        for item in scopes.get("scopeSelector", {}).get("matchExpressions", [])
        for values in [item["values"]]
    ]
    selector = client.V1ScopeSelector(match_expressions=terms) if terms else None
    spec = client.V1ResourceQuotaSpec(scopes=scopes.get("scopes"), scope_selector=selector)
    assert (quotascopes.leave_out(spec, {"containers": [{}], **pod}) == "") == counted
