"""The operator's rights are exactly those that it uses: the API server's audit log against the chart's rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemmatune_api import names
from gemmatune_api.names import TRAINER_SERVICE_ACCOUNT
from tests.support import chart
from tests.support.api import Api, ApiError, Object
from tests.support.below import PROCESS
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.play import PREPARED
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
Right = tuple[str, str, str]

UNSEEN = {(names.GROUP, f"{names.PLURAL}/finalizers", "update")}
"""Asked for when an owner reference is written, not by a request of its own; tested below."""


def granted(documents: list[Object]) -> set[Right]:
    """What the roles that the chart binds the operator to grant, as (group, resource, verb)."""
    bound = {document["roleRef"]["name"] for document in documents if "roleRef" in document}
    return {
        (group, resource, verb)
        for document in documents
        if document["kind"] in ("ClusterRole", "Role") and document["metadata"]["name"] in bound
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture
def node(crd: ControlPlane) -> Iterator[str]:
    """A Node object on which nothing runs."""
    name = "access-node"
    status = {"allocatable": {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "10"}}
    # Only a pod that is bound to it by name gets there.
    spec = {"taints": [{"key": "test", "effect": "NoSchedule"}]}
    crd.api.create("/api/v1/nodes", {"metadata": {"name": name}, "spec": spec, "status": status})
    yield name
    crd.api.delete(f"/api/v1/nodes/{name}")


def test_each_right_is_used_and_each_use_has_its_right(
    crd: ControlPlane, namespace: str, node: str, tmp_path: Path
) -> None:
    """Runs of every kind, under an operator that may do what the chart says and no more."""
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{chart.NAMESPACE}/leases/gemmatune-operator"
    if crd.api.find(lease):  # another test's: a Lease that is there already is not created
        crd.api.delete(lease)
    position = crd.audit_position
    election = ("--leader-elect", "--lease-namespace", chart.NAMESPACE)
    log = tmp_path / "operator.log"
    operator = OperatorProcess(crd.operator_kubeconfig, log, command=PROCESS, arguments=election).ready()
    try:
        stage = Stage(crd.api, namespace)
        _a_run_out_of_memory(stage, node)
        _a_run_that_is_suspended(stage)
        _a_name_that_is_taken(Stage(crd.api, namespace, "taken"))
        _a_run_on_several_nodes(Stage(crd.api, namespace, "nodes"))
        _a_run_that_is_forgotten(Stage(crd.api, namespace, "brief"))
        _a_pod_without_its_job(Stage(crd.api, namespace, "orphan"))
    finally:
        assert operator.stop() == 0
    found = crd.audited(position)
    used = {request.right for request in found if request.user == chart.OPERATOR_USER}
    rights = granted(chart.render({"replicas": 2})) - UNSEEN
    assert used - rights == set(), "used, and not granted by the chart"
    assert rights - used == set(), "granted by the chart, and used by nothing here"


def _a_run_out_of_memory(stage: Stage, node: str) -> None:
    """What the machine has is read from its Node."""
    stage.create()
    stage.ends("p1", 0, PREPARED)
    pod = stage.pod("t1")["metadata"]["name"]
    binding = {"metadata": {"name": pod}, "target": {"kind": "Node", "name": node}}
    stage.api.create(f"{stage.pods}/{pod}/binding", binding)
    stage.runs_now("t1")
    stage.wait_phase("Training")
    stage.ends("t1", 137, "", "OOMKilled")
    stage.wait(lambda status: len(status["attempts"]) == 2, "attempt 2")


def _a_run_that_is_suspended(stage: Stage) -> None:
    stage.runs_now("t2")
    stage.wait_phase("Training")
    stage.change(suspend=True)
    stage.wait_phase("Suspended")


def _a_name_that_is_taken(stage: Stage) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    stage.api.create(stage.jobs, {"metadata": {"name": "taken-p1"}, "spec": {"template": template}})
    stage.create()
    stage.wait(lambda status: status.get("reason") == "NameConflict", "NameConflict")


def _a_run_on_several_nodes(stage: Stage) -> None:
    """Its Service's name is taken by somebody else at first."""
    path = f"/api/v1/namespaces/{stage.namespace}/services"
    stage.api.create(path, {"metadata": {"name": "nodes-t1"}, "spec": {"clusterIP": "None"}})
    stage.create(accelerator={"gpu": {"type": "nvidia-l4", "nodes": 2}})
    stage.ends("p1", 0, PREPARED)
    stage.wait(lambda status: status.get("reason") == "NameConflict", "NameConflict")
    stage.api.delete(f"{path}/nodes-t1")
    stage.job("t1")


def _a_run_that_is_forgotten(stage: Stage) -> None:
    """ttlAfterFinished deletes the resource."""
    stage.create(ttlAfterFinished="1s")
    stage.ends("p1", 12, {"message": "no such column"})
    wait_for(lambda: stage.api.find(f"{stage.runs}/{stage.name}") is None, "the resource to be deleted")


def _a_pod_without_its_job(stage: Stage) -> None:
    """Somebody deletes the Job and leaves its pod: it is deleted before another attempt begins."""
    stage.create()
    stage.to_training()
    pod = stage.pod("t1")["metadata"]["name"]
    stage.api.delete(f"{stage.jobs}/{stage.name}-t1", {"propagationPolicy": "Orphan"})
    wait_for(lambda: stage.api.find(f"{stage.pods}/{pod}") is None, "the pod to be deleted")
    stage.job("t2")


def twin(crd: ControlPlane, name: str, without: str = "") -> Api:
    """Somebody with the operator's rights, but for those of one resource, whose requests nobody counts."""
    role = next(document for document in chart.render() if document["kind"] == "ClusterRole")
    rules = [rule for rule in role["rules"] if rule["resources"] != [without]]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    binding = {
        "apiVersion": role["apiVersion"],
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": reference,
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
    }
    chart.apply(crd, [{**role, "metadata": {"name": name}, "rules": rules}, binding])
    wait_for(lambda: chart.allowed(crd, name, "list", names.PLURAL), f"the rights of {name}")
    return crd.api_as(name)


def test_the_right_to_block_an_owners_deletion(crd: ControlPlane, namespace: str) -> None:
    """Without gemmafinetunes/finalizers, clusters that check owner references refuse every Job."""
    resource = Stage(crd.api, namespace).create()
    reference = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": "quotes",
        "uid": resource["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    job = {"metadata": {"name": "quotes-x1", "ownerReferences": [reference]}, "spec": {"template": pod}}
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    with pytest.raises(ApiError, match="can't set finalizers on"):
        twin(crd, "without-finalizers", without=f"{names.PLURAL}/finalizers").create(path, job)
    twin(crd, "with-finalizers").create(path, job)


def test_the_operator_passes_on_only_what_it_holds(crd: ControlPlane, namespace: str) -> None:
    """It may make Roles, and yet gives nobody a right that it does not have itself."""
    operator = twin(crd, "generous")
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles"
    secrets = {"metadata": {"name": "x"}, "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}
    with pytest.raises(ApiError, match="attempting to grant RBAC permissions not currently held"):
        operator.create(path, secrets)
    assert not _may(operator, f"/api/v1/namespaces/{namespace}/secrets")
    assert not _may(operator, f"/api/v1/namespaces/{namespace}/serviceaccounts/default")


def _may(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ApiError as error:
        return error.status != 403
    return True


def test_access_objects_are_made_once_and_never_edited(
    crd: ControlPlane, make_namespace: Callable[..., str], tmp_path: Path
) -> None:
    """What is there is left as it is, quietly; a named account gets a binding of its own, and is not made."""
    namespace = make_namespace()
    kept = {"metadata": {"name": TRAINER_SERVICE_ACCOUNT, "annotations": {"iam.gke.io/gcp-service-account": "x"}}}
    crd.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", kept)
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    own = {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "verbs": ["get"]}
    crd.api.create(f"{rbac}/roles", {"metadata": {"name": TRAINER_SERVICE_ACCOUNT}, "rules": [own]})
    log = tmp_path / "operator.log"
    operator = OperatorProcess(crd.operator_kubeconfig, log, namespaces=[namespace])
    try:
        stage = Stage(crd.api, namespace)
        stage.create()
        stage.job("p1")
        other = Stage(crd.api, namespace, "other")
        other.create(pod={"serviceAccountName": "science"})
        other.job("p1")
    finally:
        assert operator.stop() == 0
    account = crd.api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{TRAINER_SERVICE_ACCOUNT}")
    assert account["metadata"]["annotations"] == kept["metadata"]["annotations"]
    assert "labels" not in account["metadata"]
    assert crd.api.get(f"{rbac}/roles/{TRAINER_SERVICE_ACCOUNT}")["rules"] == [own]
    bindings = {item["metadata"]["name"]: item for item in crd.api.get(f"{rbac}/rolebindings")["items"]}
    assert bindings.keys() == {TRAINER_SERVICE_ACCOUNT, f"{TRAINER_SERVICE_ACCOUNT}-science"}
    for name, account_name in (
        (TRAINER_SERVICE_ACCOUNT, TRAINER_SERVICE_ACCOUNT),
        (f"{TRAINER_SERVICE_ACCOUNT}-science", "science"),
    ):
        assert bindings[name]["subjects"] == [{"kind": "ServiceAccount", "name": account_name, "namespace": namespace}]
        assert bindings[name]["roleRef"]["name"] == TRAINER_SERVICE_ACCOUNT
    assert crd.api.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/science") is None
    words = log.read_text()
    assert "already exists" not in words
    assert '"level": "error"' not in words
