"""What `gft doctor` asks the API server, as the user: what is installed, and what the namespace has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kubernetes import client

from gemmatune_api import names
from gemmatune_cli.refusals import FORBIDDEN, UNAUTHORIZED, api_error, reason
from gemmatune_cli.remote import Connection


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    verdict: Verdict
    subject: str
    message: str
    remedy: str = ""


def may_not(subject: str, error: Any, what: str) -> Finding:
    """A check that the user's rights do not allow, or that the API server did not answer.

    Raises:
        CommandError: the API server does not know the user at all: no other check would say more.
    """
    if error.status == UNAUTHORIZED:
        raise api_error(error, subject) from error
    if error.status == FORBIDDEN:
        remedy = f"Ask somebody who may {what}."
        return Finding(Verdict.UNKNOWN, subject, f"you may not {what}", remedy)
    return Finding(Verdict.UNKNOWN, subject, f"the API server answered {error.status} {reason(error)}")


def resource_kind(cluster: Connection) -> Finding:
    """Whether the API server knows the resource."""
    try:
        found = cluster.api.get_api_resources(names.GROUP, names.VERSION)
    except client.ApiException as error:
        if error.status != 404:
            return may_not("resource", error, "read the API's resources")
        message = f"the API server does not know {names.API_VERSION}"
        return Finding(Verdict.PROBLEM, "resource", message, "Install the chart, or apply crds/.")
    kinds = {item.kind for item in found.resources}
    if names.KIND not in kinds:
        return Finding(Verdict.PROBLEM, "resource", f"{names.API_VERSION} has no {names.KIND}", "Install the chart.")
    return Finding(Verdict.OK, "resource", f"{names.KIND} is served as {names.API_VERSION}")


def rights(cluster: Connection, namespace: str) -> Finding:
    """Whether the user may make, list, follow and change runs."""
    verbs = ("create", "get", "list", "watch", "patch", "delete")
    try:
        missing = [verb for verb in verbs if not _may(cluster, namespace, verb)]
    except client.ApiException as error:
        return may_not("rights", error, "ask the API server what you may do")
    if missing:
        message = f"you may not {', '.join(missing)} {names.PLURAL} in namespace {namespace}"
        return Finding(Verdict.PROBLEM, "rights", message, "Ask for a Role with these verbs.")
    return Finding(Verdict.OK, "rights", f"you may create, list, follow and change runs in namespace {namespace}")


def _may(cluster: Connection, namespace: str, verb: str) -> bool:
    attributes = client.V1ResourceAttributes(group=names.GROUP, resource=names.PLURAL, verb=verb, namespace=namespace)
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
    found = client.AuthorizationV1Api(cluster.client).create_self_subject_access_review(review)
    return bool(found.status.allowed)


def service_account(cluster: Connection, namespace: str, name: str) -> Finding:
    """Whether the ServiceAccount of the run's pods exists."""
    try:
        cluster.core.read_namespaced_service_account(name, namespace)
    except client.ApiException as error:
        if error.status != 404:
            return may_not("ServiceAccount", error, "read ServiceAccounts")
        if name == names.TRAINER_SERVICE_ACCOUNT:
            message = f"{name} does not exist yet: the operator makes it with the first run of the namespace"
            return Finding(Verdict.WARNING, "ServiceAccount", message, "Its access to buckets can be granted before.")
        remedy = f"kubectl create serviceaccount {name} -n {namespace}"
        return Finding(Verdict.PROBLEM, "ServiceAccount", f"{name} does not exist", remedy)
    return Finding(Verdict.OK, "ServiceAccount", f"{name} exists")


def secrets(cluster: Connection, namespace: str, pod: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the Secrets and keys that a pod's environment names exist; their values are not looked at."""
    wanted: dict[str, list[str]] = {}
    for variable in (entry for item in pod["containers"] for entry in item["env"]):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference and not reference.get("optional"):
            wanted.setdefault(reference["name"], []).append(reference["key"])
    for name, keys in wanted.items():
        yield _secret(cluster, namespace, name, keys)


def _secret(cluster: Connection, namespace: str, name: str, keys: list[str]) -> Finding:
    create = f"kubectl create secret generic {name} -n {namespace} " + " ".join(
        f"--from-literal={key}=..." for key in keys
    )
    try:
        found = cluster.core.read_namespaced_secret(name, namespace)
    except client.ApiException as error:
        if error.status == 404:
            return Finding(Verdict.PROBLEM, "Secret", f"{name} does not exist", create)
        return may_not("Secret", error, f"read Secret {name}")
    missing = [key for key in keys if not (found.data or {}).get(key)]
    if missing:
        return Finding(Verdict.PROBLEM, "Secret", f"{name} has no key {', '.join(missing)}", create)
    return Finding(Verdict.OK, "Secret", f"{name} has {', '.join(keys)}")
