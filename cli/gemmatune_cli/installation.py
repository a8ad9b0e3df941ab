"""The installation that a namespace's runs meet, as `gft doctor` finds it: operator, its settings, and the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from kubernetes import client

from gemmatune_api import names, site_defaults
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_cli.checkup import Finding, Verdict, may_not
from gemmatune_cli.refusals import NOT_FOUND
from gemmatune_cli.remote import Connection
from gemmatune_operator import options
from gemmatune_operator.settings import Settings

OPERATOR_LABELS = "app.kubernetes.io/name=gemmatune"
_CONTAINER = "operator"
"""Its container, in the chart's Deployment; where none has this name, the first."""
_NOTHING = "{}"
"""Stands for a file of the operator that cannot be read from here."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What decides about runs of a namespace beside their resources."""

    findings: tuple[Finding, ...]
    settings: Settings | None = None
    """What the operator was told; None where that cannot be known."""
    defaults: SiteDefaults = field(default_factory=SiteDefaults)
    """Defaults of namespace and installation, as far as they are known."""
    whole: bool = False
    """Whether no other defaults can hold than these."""


def look(cluster: Connection, namespace: str) -> Installation:
    """The operator that watches a namespace, and the defaults that hold there."""
    finding, deployment = _operator(cluster, namespace)
    findings, missing = [finding], []
    settings: Settings | None = None
    if deployment is None:
        missing.append("the operator's")
    else:
        try:
            settings, _ = _told(cluster, deployment, missing)
        except ValueError as error:
            message = f"the arguments of {_name(deployment)} cannot be read: {error}"
            remedy = "Where it is ready, it is newer than this gft: use that of its version."
            findings.append(Finding(Verdict.UNKNOWN, "operator", message, remedy))
            missing.append("the operator's")
    below = settings.defaults if settings is not None else SiteDefaults()
    try:
        above = _of_namespace(cluster, namespace, missing)
    except InvalidResourceError as error:
        remedy = f"kubectl edit configmap {names.DEFAULTS_CONFIG_MAP} -n {namespace}"
        findings.append(Finding(Verdict.PROBLEM, "defaults", f"a run would wait: {error}", remedy))
        return Installation(tuple(findings), settings, below)
    given = above.over(below)
    findings.append(_defaults_finding(given, missing))
    return Installation(tuple(findings), settings, given, whole=not missing)


def _defaults_finding(given: SiteDefaults, missing: list[str]) -> Finding:
    named = [f"{field}: {_short(value)}" for field, value in given.model_dump(by_alias=True, exclude_none=True).items()]
    if missing:
        message = f"not all are known, since these cannot be read: {', '.join(missing)}"
        remedy = "Where they give an output, a Secret or a ServiceAccount, what is said below of these may be wrong."
        return Finding(Verdict.UNKNOWN, "defaults", "; ".join([message, *named]), remedy)
    return Finding(Verdict.OK, "defaults", ", ".join(named) or "none are given")


def _short(value: Any) -> str:
    return ", ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def _operator(cluster: Connection, namespace: str) -> tuple[Finding, Any]:
    """Whether an operator is there, ready and looks at the namespace; its Deployment, None where there is none."""
    try:
        listed = client.AppsV1Api(cluster.client).list_deployment_for_all_namespaces(label_selector=OPERATOR_LABELS)
    except client.ApiException as error:
        return may_not("operator", error, "list Deployments of all namespaces"), None
    if not listed.items:
        remedy = "Install the chart; an operator that runs outside the cluster is not seen from here."
        return Finding(Verdict.WARNING, "operator", f"no Deployment has the label {OPERATOR_LABELS}", remedy), None
    watched = [(item, _watched(item)) for item in listed.items]
    mine = [item for item, watches in watched if not watches or namespace in watches]
    if not mine:
        seen = "; ".join(f"{_name(item)} watches {', '.join(watches)}" for item, watches in watched)
        message = f"no operator looks at namespace {namespace}, and a run would wait: {seen}"
        remedy = "Add it to `namespaces` of the chart's values, or use a namespace that is watched."
        return Finding(Verdict.PROBLEM, "operator", message, remedy), watched[0][0]
    found = max(mine, key=lambda item: item.status.ready_replicas or 0)
    ready = found.status.ready_replicas or 0
    if not ready:
        remedy = f"kubectl describe deployment {found.metadata.name} -n {found.metadata.namespace}"
        return Finding(Verdict.PROBLEM, "operator", f"{_name(found)} has no ready pod", remedy), found
    return Finding(Verdict.OK, "operator", f"{_name(found)} is ready ({ready} of {found.spec.replicas})"), found


def _name(deployment: Any) -> str:
    return f"Deployment {deployment.metadata.namespace}/{deployment.metadata.name}"


def _watched(deployment: Any) -> tuple[str, ...]:
    """The namespaces that an operator watches; none: all, or they cannot be read."""
    container = _container(deployment)
    try:
        return options.elsewhere(container.args or [], _environment(container), lambda _: _NOTHING)[1]
    except ValueError:
        return ()


def _told(cluster: Connection, deployment: Any, missing: list[str]) -> tuple[Settings, tuple[str, ...]]:
    """What an operator was told; files of defaults that may not be read are noted as missing. Raises ValueError."""
    container = _container(deployment)
    prices = {item.partition("=")[2] for item in container.args or [] if item.startswith("--prices=")}

    def text(file: str) -> str:
        found = _file(cluster, deployment, container, file)
        if found is None and file not in prices:  # of which nothing is said here
            missing.append(f"{file} of {_name(deployment)}")
        return _NOTHING if found is None else found

    return options.elsewhere(container.args or [], _environment(container), text)


def _container(deployment: Any) -> Any:
    containers = deployment.spec.template.spec.containers
    return next((item for item in containers if item.name == _CONTAINER), containers[0])


def _environment(container: Any) -> dict[str, str]:
    return {item.name: item.value or "" for item in container.env or [] if item.value_from is None}


def _file(cluster: Connection, deployment: Any, container: Any, file: str) -> str | None:
    """The text of a file that a ConfigMap is mounted as; None where that cannot be found or read."""
    path = PurePosixPath(file)
    mount = next((item for item in container.volume_mounts or [] if item.mount_path == str(path.parent)), None)
    volumes = {item.name: item for item in deployment.spec.template.spec.volumes or []}
    source = volumes[mount.name].config_map if mount is not None and mount.name in volumes else None
    if source is None:
        return None
    try:
        found = cluster.core.read_namespaced_config_map(source.name, deployment.metadata.namespace)
    except client.ApiException as error:
        may_not("defaults", error, "read ConfigMaps")  # ends here where the login is refused
        return None
    return (found.data or {}).get(path.name)


def _of_namespace(cluster: Connection, namespace: str, missing: list[str]) -> SiteDefaults:
    """The namespace's own defaults. Raises InvalidResourceError: they cannot be used."""
    try:
        found = cluster.core.read_namespaced_config_map(names.DEFAULTS_CONFIG_MAP, namespace)
    except client.ApiException as error:
        if error.status != NOT_FOUND:
            may_not("defaults", error, "read ConfigMaps")
            missing.append(f"ConfigMap {names.DEFAULTS_CONFIG_MAP} of the namespace")
        return SiteDefaults()
    return site_defaults.of_config_map(found.data or {})
