"""The real API server accepts every golden manifest, in a namespace that enforces Pod Security `restricted`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import yaml

from tests.golden.cases import cases, expected_file
from tests.support.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

Object = dict[str, Any]


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane, make_namespace: Callable[..., str]) -> str:
    """A namespace with what the pods of the cases refer to and admission looks up."""
    namespace = make_namespace(pod_security="restricted")
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "batch-low"},
        "value": -10,
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer-with-bucket"}}
    # Pods are admitted only when their ServiceAccount exists. Most cases share their access objects.
    access = {json.dumps(item): item for case in cases() for item in manifests(case, namespace) if not of_a_run(item)}
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=listed([priority, account, *access.values()]))
    return namespace


def of_a_run(manifest: Object) -> bool:
    """Whether the object belongs to one run, and is not shared by the runs of a namespace."""
    return manifest["kind"] in ("Job", "Service")


def listed(items: Sequence[Object]) -> Object:
    """Objects as one, for one call of kubectl."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def manifests(case: str, namespace: str) -> list[Object]:
    """The case's objects, moved into the namespace."""
    text = expected_file(case).read_text(encoding="utf-8").replace("namespace: team-a", f"namespace: {namespace}")
    documents: list[Object] = list(yaml.safe_load_all(text))
    return documents


def pod_of(job: Object) -> Object:
    """The pod that the Job controller would make: Pod Security only warns about Jobs, and refuses pods."""
    template = copy.deepcopy(job["spec"]["template"])
    template["metadata"] |= {"name": f"{job['metadata']['name']}-abcde", "namespace": job["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", **template}


@pytest.mark.parametrize("case", cases())
def test_the_api_server_accepts_the_manifests(control_plane: ControlPlane, restricted: str, case: str) -> None:
    own = [item for item in manifests(case, restricted) if of_a_run(item)]
    subjects = own + [pod_of(item) for item in own if item["kind"] == "Job"]
    done = control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=listed(subjects))
    assert "Warning" not in done.stderr, done.stderr
    assert done.stdout.count("created (server dry run)") == len(subjects)


def test_pod_security_is_enforced_here(control_plane: ControlPlane, restricted: str) -> None:
    job = manifests("minimal", restricted)[-1]
    pod = pod_of(job)
    pod["spec"]["containers"][0]["securityContext"].pop("capabilities")
    done = control_plane.kubectl("create", "--dry-run=server", "-f", "-", input=pod, check=False)
    assert done.returncode != 0
    assert "violates PodSecurity" in done.stderr


@pytest.mark.parametrize(
    "case",
    ["pod-overrides", "retry-overrides", "nodes-2-overrides", "tpu-v5e-2x4-two-hosts-off-gke", "flex-start-queue"],
)
def test_the_stored_job_is_the_manifest(control_plane: ControlPlane, restricted: str, case: str) -> None:
    """What was sent is what is stored: no field is dropped, renamed or changed by the server's defaults."""
    job = manifests(case, restricted)[-1]
    done = control_plane.kubectl("create", "--dry-run=server", "-f", "-", "-o", "json", input=job)
    assert_contains(json.loads(done.stdout), job, "")


def assert_contains(stored: Any, sent: Any, path: str) -> None:
    if isinstance(sent, dict):
        for name, value in sent.items():
            assert name in stored, f"{path}.{name} was dropped"
            assert_contains(stored[name], value, f"{path}.{name}")
    elif isinstance(sent, list):
        assert len(stored) == len(sent), path
        for index, value in enumerate(sent):
            assert_contains(stored[index], value, f"{path}[{index}]")
    else:
        assert stored == sent, path
