"""`helm install` on the real control plane; an upgrade brings a new definition, and the chart's end leaves the runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_api import names
from gemmatune_api.generate import KEEP
from tests.support import chart
from tests.support.api import APPLY, ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.play import SPEC
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
Helm = Callable[..., subprocess.CompletedProcess[str]]
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEFINITION = f"{names.PLURAL}.{names.GROUP}"
FORMER = sorted((chart.CHART.parents[1] / "tests/data").glob("[0-9]*"))
"""What each release has left: its definition, and resources midway with their status."""
TRAINERS: Object = {
    "progress": {"step": 4, "totalSteps": 8, "stepText": "4/8", "loss": 6.4, "historySteps": [4], "historyLoss": [6.4]},
    "checkpoint": {"step": 4, "uri": "gs://former/runs/quotes/checkpoints/step-00000004"},
}
"""A trainer's part of the status, which stored resources have not."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """A control plane of its own: the chart brings the CustomResourceDefinition."""
    with ControlPlane() as running:
        yield running


@pytest.fixture(scope="module")
def restricted(cluster: ControlPlane, helm: Helm) -> Iterator[str]:
    """A namespace at the Pod Security level `restricted`."""
    name = "tuning"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    yield name
    cluster.api.delete(f"/api/v1/namespaces/{name}")


def test_install_upgrade_uninstall(cluster: ControlPlane, helm: Helm, restricted: str) -> None:
    def run(*arguments: str) -> str:
        flags = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", restricted)
        return helm(*arguments, *flags).stdout

    shown = run("install", "gemmatune", str(chart.CHART))
    assert "kubectl rollout status deployment/gemmatune-operator -n tuning" in shown
    assert "watches all namespaces" in shown
    pod = _pod(cluster, restricted)
    assert pod["status"]["phase"] == "Pending", "admitted at the level `restricted`; there is no node"
    wait_for(lambda: _is_served(cluster), "the definition to be served")
    runs = f"/apis/{names.API_VERSION}/namespaces/{restricted}/{names.PLURAL}"
    resource = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}, "spec": SPEC}
    cluster.api.create(runs, resource)

    # A definition of an earlier version: the upgrade brings the chart's.
    cluster.api.patch(f"{DEFINITIONS}/{DEFINITION}", {"spec": {"names": {"shortNames": ["old"]}}})
    values = ("--set=policy.install=false", "--set=namespaces={tuning}", "--force-conflicts")
    shown = run("upgrade", "gemmatune", str(chart.CHART), *values)
    assert "The admission policy is not installed" in shown
    assert "watches tuning" in shown
    found = cluster.api.get(f"{DEFINITIONS}/{DEFINITION}")
    assert found["spec"]["names"]["shortNames"] == [names.SHORT_NAME]
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/gemmatune-operator-status"
    assert cluster.api.find(policies) is None
    user = f"system:serviceaccount:{restricted}:{chart.OPERATOR}"
    wait_for(lambda: chart.allowed(cluster, user, "list", names.PLURAL, restricted), "rights in the namespace")
    wait_for(lambda: not chart.allowed(cluster, user, "list", names.PLURAL), "no rights elsewhere")

    run("uninstall", "gemmatune")
    assert cluster.api.find(f"{runs}/a") is not None, "resources outlive the chart"
    assert cluster.api.get(f"{DEFINITIONS}/{DEFINITION}")["spec"]["group"] == names.GROUP
    run("install", "gemmatune", str(chart.CHART))
    assert cluster.api.find(f"{runs}/a") is not None

    # Helm remembers whose the definition is: another release has to be told to take it.
    run("uninstall", "gemmatune")
    with pytest.raises(AssertionError, match=f'"{DEFINITION}"'):
        run("install", "other", str(chart.CHART))
    run("install", "other", str(chart.CHART), "--take-ownership")
    assert cluster.api.find(f"{runs}/a") is not None
    run("uninstall", "other")


def test_one_operator_two_and_one_again(cluster: ControlPlane, helm: Helm, restricted: str) -> None:
    """Also by a rollback; and whoever may edit a namespace may make runs in it, whoever may view it sees them."""
    flags = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", restricted)
    deployment = f"/apis/apps/v1/namespaces/{restricted}/deployments/gemmatune-operator"

    def replicas() -> int:
        return int(cluster.api.get(deployment)["spec"]["replicas"])

    helm("install", "gemmatune", str(chart.CHART), "--take-ownership", *flags)
    helm("upgrade", "gemmatune", str(chart.CHART), "--set=replicas=2", *flags)
    assert replicas() == 2
    helm("upgrade", "gemmatune", str(chart.CHART), "--set=replicas=1", *flags)
    assert replicas() == 1
    helm("rollback", "gemmatune", "2", *flags)
    assert replicas() == 2
    helm("rollback", "gemmatune", "1", *flags)
    assert replicas() == 1

    for role in ("view", "edit"):
        cluster.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", restricted)
    wait_for(lambda: chart.allowed(cluster, "editer", "create", names.PLURAL, restricted), "the right to make runs")
    assert chart.allowed(cluster, "viewer", "watch", names.PLURAL, restricted)
    assert not chart.allowed(cluster, "viewer", "create", names.PLURAL, restricted)
    assert not chart.allowed(cluster, "editer", "create", names.PLURAL, "default")
    helm("uninstall", "gemmatune", *flags)


def test_a_definition_that_was_applied_by_hand(cluster: ControlPlane, helm: Helm, restricted: str) -> None:
    """`kubectl apply -f crds/`, and the chart afterwards."""
    flags = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", restricted)
    cluster.kubectl("delete", "crd", DEFINITION, "--ignore-not-found")
    cluster.kubectl("apply", "-f", str(chart.CHART.parents[1] / "crds"))
    with pytest.raises(AssertionError, match=f'"{DEFINITION}"'):
        helm("install", "gemmatune", str(chart.CHART), *flags)
    helm("install", "gemmatune", str(chart.CHART), *flags, "--take-ownership", "--force-conflicts")
    labels = cluster.api.get(f"{DEFINITIONS}/{DEFINITION}")["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "Helm"
    helm("uninstall", "gemmatune", *flags)


@pytest.mark.parametrize("release", FORMER, ids=lambda folder: folder.name)
def test_resources_of_a_former_release_stay_valid(
    release: Path, cluster: ControlPlane, helm: Helm, restricted: str, tmp_path: Path
) -> None:
    """They were stored under its definition. After the upgrade they are as they were, can be written, and made again.

    Made again, since of a resource that exists the API server checks only what changes.
    """
    flags = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", restricted)
    cluster.kubectl("delete", "crd", DEFINITION, "--ignore-not-found")
    helm("install", "gemmatune", str(_former_chart(release, tmp_path / "chart")), *flags)
    wait_for(lambda: _is_served(cluster), "the former definition to be served")
    former = {folder.parent.name: json.loads(folder.read_text()) for folder in release.glob("*/resource.json")}
    wait_for(lambda: _refusal_of_mark(cluster, restricted) == "", "the former definition to be in force")
    specs = {name: resource["spec"] for name, resource in former.items()}
    _apply(cluster, restricted, specs)
    for name, resource in former.items():
        _apply_status(cluster, restricted, name, resource["status"])
    before = {name: _stored(cluster, restricted, name) for name in former}

    helm("upgrade", "gemmatune", str(chart.CHART), *flags)
    wait_for(lambda: MARK in _refusal_of_mark(cluster, restricted), "the new definition to be in force")
    assert {name: _stored(cluster, restricted, name) for name in former} == before, "nothing is lost"
    changed = {name: spec | {"limits": {"maxRetries": 5}} for name, spec in specs.items()}
    _apply(cluster, restricted, {**changed, **{f"{name}-again": spec for name, spec in specs.items()}})
    for name, resource in former.items():
        _apply_status(cluster, restricted, name, resource["status"] | {"phase": "Training"})
        _apply_status(cluster, restricted, f"{name}-again", resource["status"])
        assert _stored(cluster, restricted, f"{name}-again") == before[name]
    helm("uninstall", "gemmatune", *flags)


MARK = "ofAFormerRelease"
"""A field that the former definition gets: a request tells which of the two is in force."""


def _former_chart(release: Path, folder: Path) -> Path:
    """The chart with a former release's definition."""
    shutil.copytree(chart.CHART, folder)
    definition = yaml.safe_load((release / "crd.yaml").read_text())
    definition["metadata"]["annotations"] = KEEP
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"][MARK] = {"type": "boolean"}
    (folder / "files/crd.yaml").write_text(json.dumps(definition))
    return folder


def _refusal_of_mark(cluster: ControlPlane, namespace: str) -> str:
    """What the API server says of a resource with that field; nothing where it takes it."""
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "probe"}}
    try:
        cluster.api.call(
            "POST", path, {**document, "spec": {**SPEC, MARK: True}}, dryRun="All", fieldValidation="Strict"
        )
    except ApiError as error:
        return str(error)
    return ""


def _apply(cluster: ControlPlane, namespace: str, specs: Object) -> None:
    """As people do: resources by name, at once."""
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND}
    items = [{**head, "metadata": {"name": name, "namespace": namespace}, "spec": spec} for name, spec in specs.items()]
    document = {"apiVersion": "v1", "kind": "List", "items": items}
    cluster.kubectl("apply", "--validate=strict", "-f", "-", input=document)


def _apply_status(cluster: ControlPlane, namespace: str, name: str, status: Object) -> None:
    """As operator and trainer do; a field that the definition does not know is an error."""
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}/{name}/status"
    for manager, fields in ((names.FIELD_MANAGER_OPERATOR, status), (names.FIELD_MANAGER_TRAINER, TRAINERS)):
        document = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "status": fields,
        }
        cluster.api.patch(path, document, APPLY, fieldManager=manager, force="true", fieldValidation="Strict")


def _stored(cluster: ControlPlane, namespace: str, name: str) -> tuple[Any, Any]:
    """Spec and status."""
    found = cluster.api.get(f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}/{name}")
    return found["spec"], found["status"]


def _pod(cluster: ControlPlane, namespace: str) -> Object:
    """The pod of the operator's Deployment."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    found = wait_for(
        lambda: cluster.api.get(path, labelSelector="app.kubernetes.io/name=gemmatune")["items"],
        "the operator's pod",
        detail=lambda: cluster.api.get(f"/api/v1/namespaces/{namespace}/events")["items"],
    )
    pod: Object = found[0]
    return pod


def _is_served(cluster: ControlPlane) -> bool:
    conditions = cluster.api.get(f"{DEFINITIONS}/{DEFINITION}")["status"].get("conditions") or []
    return any((item["type"], item["status"]) == ("Established", "True") for item in conditions)
