"""The chart as Helm renders it, and the operator's rights as it grants them, on the real control plane."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.api import ApiError, Object
from tests.support.wait import wait_for
from tools import kube

if TYPE_CHECKING:
    from tests.support.controlplane import ControlPlane

CHART = Path(__file__).resolve().parents[2] / "charts" / "gemmatune"
RELEASE = "gemmatune"
NAMESPACE = "gemmatune-system"
OPERATOR = "gemmatune-operator"
OPERATOR_USER = f"system:serviceaccount:{NAMESPACE}:{OPERATOR}"
AUDITED_GROUP = f"system:serviceaccounts:{NAMESPACE}"
# What lets the operator in, without the operator: its process is started by each test.
ACCESS_KINDS = (
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
)


def helm(*arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs Helm with a home of its own.

    Errors: FileNotFoundError with the remedy; AssertionError with Helm's own words when it fails and `check` is set.
    """
    program = kube.find("helm")
    if program is None:
        raise FileNotFoundError("helm is not built: run `make kube`")
    with tempfile.TemporaryDirectory(prefix="gemmatune-helm-") as home:
        homes = {f"HELM_{kind}_HOME": home for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [str(program), *arguments],
            env={**os.environ, **homes},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    if check and done.returncode != 0:
        raise AssertionError(f"helm {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done


def values_flags(values: Object) -> list[str]:
    """The flags that set values by their dotted path, each as JSON."""
    return [f"--set-json={path}={json.dumps(value)}" for path, value in values.items()]


def render(values: Object | None = None, *, release: str = RELEASE, namespace: str = NAMESPACE) -> list[Object]:
    """The objects of the chart; `values` by dotted path."""
    text = helm(
        "template", release, str(CHART), "--skip-tests", "--namespace", namespace, *values_flags(values or {})
    ).stdout
    return [document for document in yaml.safe_load_all(text) if document]


@functools.cache
def _access() -> str:
    # Two replicas: with the rights to elect a leader.
    return json.dumps([document for document in render({"replicas": 2}) if document["kind"] in ACCESS_KINDS])


def install_access(control_plane: ControlPlane) -> None:
    """The operator's ServiceAccount and rights, and the admission policy, as the chart has them."""
    api = control_plane.api
    try:
        api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    except ApiError as error:
        if error.status != 409:
            raise
    apply(control_plane, json.loads(_access()))
    wait_for(lambda: allowed(control_plane, OPERATOR_USER, "list", "gemmafinetunes"), "the operator's rights")


def apply(control_plane: ControlPlane, documents: Sequence[Object]) -> None:
    """Applies objects as the administrator."""
    control_plane.kubectl(
        "apply", "--server-side", "-f", "-", input={"apiVersion": "v1", "kind": "List", "items": list(documents)}
    )


def allowed(control_plane: ControlPlane, user: str, verb: str, resource: str, namespace: str = "") -> bool:
    """Whether RBAC lets a user do something to the project's resources."""
    attributes = {"group": "gemmatune.dev", "resource": resource, "verb": verb, "namespace": namespace}
    review: Any = control_plane.api.create(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"spec": {"user": user, "resourceAttributes": attributes}},
    )
    return bool(review["status"]["allowed"])


def token(control_plane: ControlPlane, namespace: str, account: str, pod: Object | None = None) -> str:
    """A token of a ServiceAccount, bound to a pod where one is given, as the kubelet asks for it."""
    spec: Object = {"expirationSeconds": 24 * 3600}
    if pod is not None:
        meta = pod["metadata"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    answer: str = control_plane.api.create(path, {"spec": spec})["status"]["token"]
    return answer


def one(documents: list[Object], kind: str) -> Object:
    """The object of that kind; of the ClusterRoles that of the operator."""
    (found,) = [document for document in documents if document["kind"] == kind and not of_people(document)]
    return found


def of_people(document: Object) -> bool:
    """Whether a role is one that Kubernetes gives people a part of, not the operator's."""
    return any("/aggregate-to-" in label for label in document["metadata"].get("labels", {}))
