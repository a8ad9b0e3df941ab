"""Whether nodes and quotas have room for an attempt, for `gft doctor`: for all of its pods at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from gemmatune_api.quantity import parse
from gemmatune_cli import quotascopes
from gemmatune_cli.checkup import Finding, Verdict, may_not
from gemmatune_cli.remote import Connection

_NODE_LABELS = ("cloud.google.com/gke-accelerator", "cloud.google.com/gke-tpu-accelerator")
_REQUESTED = ("requests.", "limits.")
_GROWS = "`gcloud container node-pools list` shows it."


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of an attempt, which start together or not at all."""

    spec: Mapping[str, Any]
    """Of each of them."""
    count: int = 1

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> Pods:
        """Those of an attempt's Job."""
        return cls(job["spec"]["template"]["spec"], job["spec"].get("parallelism", 1))

    @property
    def resources(self) -> Mapping[str, Any]:
        """Requests and limits of each."""
        found: Mapping[str, Any] = self.spec["containers"][0]["resources"]
        return found

    @property
    def together_in(self) -> str:
        """The label whose value the nodes of all of them must share; "" where any nodes do."""
        affinity = self.spec.get("affinity", {}).get("podAffinity", {})
        terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        return terms[0]["topologyKey"] if terms else ""


def nodes(cluster: Connection, pods: Pods | None) -> Finding:
    """Whether there are nodes that the pods could run on; without pods, which accelerators there are."""
    try:
        found = cluster.core.list_node().items
    except client.ApiException as error:
        return may_not("nodes", error, "list Nodes")
    if pods is None:
        labels = [item.metadata.labels or {} for item in found]
        kinds = {has[name] for has in labels for name in _NODE_LABELS if name in has}
        shown = ", ".join(sorted(kinds)) or "no accelerators now"
        return Finding(Verdict.OK, "nodes", f"{len(found)} nodes, with {shown}")
    selector: Mapping[str, str] = pods.spec.get("nodeSelector", {})
    matching = [item for item in found if selector.items() <= (item.metadata.labels or {}).items()]
    asked = ", ".join(f"{key}={value}" for key, value in selector.items()) or "no label"
    if not matching:
        message = f"none of {len(found)} nodes matches {asked}"
        remedy = f"A node pool that scales from zero is not seen from here: {_GROWS}"
        return Finding(Verdict.WARNING, "nodes", message, remedy)
    return _room(matching, pods, asked)


def _room(matching: list[Any], pods: Pods, asked: str) -> Finding:
    """Whether nodes with the right labels are large enough, and as many as the pods need."""
    requests = pods.resources["requests"]
    places = [(item, _places(requests, item.status.allocatable or {})) for item in matching]
    fitting = [item for item, number in places if number]
    if not fitting:
        lacks = ", ".join(_lacking(requests, matching[0].status.allocatable or {}))
        message = (
            f"{len(matching)} nodes match {asked}, and all are too small: {matching[0].metadata.name} lacks {lacks}"
        )
        return Finding(Verdict.PROBLEM, "nodes", message, "Add a larger machine type, or lower pod.resources.")
    if pods.count == 1:
        return Finding(Verdict.OK, "nodes", f"{len(fitting)} nodes can take the pod ({asked})")
    most = _most_together(places, pods.together_in)
    if most < pods.count:
        where = f"of one {pods.together_in}" if pods.together_in else "that are there"
        message = f"the nodes {where} have room for {most} of the {pods.count} pods at once ({asked})"
        return Finding(Verdict.WARNING, "nodes", message, f"A node pool that can grow is not seen from here: {_GROWS}")
    return Finding(Verdict.OK, "nodes", f"{len(fitting)} nodes can take the {pods.count} pods ({asked})")


def _most_together(places: list[tuple[Any, int]], shared: str) -> int:
    """How many pods the nodes take that share the value of a label; "": all nodes."""
    found: Counter[str] = Counter()
    for item, number in places:
        labels = item.metadata.labels or {}
        if not shared or shared in labels:
            found[labels.get(shared, "")] += number
    return max(found.values(), default=0)


def _places(requests: Mapping[str, str], has: Mapping[str, str]) -> int:
    """How many such pods a node can take: of those that ask for all of its accelerators one."""
    asked = {name: parse(str(value)) for name, value in requests.items()}
    return min((int(parse(str(has.get(name, "0"))) // value) for name, value in asked.items() if value), default=1)


def _lacking(requests: Mapping[str, str], has: Mapping[str, str]) -> list[str]:
    return [
        f"{name} (has {has.get(name, 0)}, asked {value})"
        for name, value in requests.items()
        if parse(str(has.get(name, "0"))) < parse(str(value))
    ]


def quotas(cluster: Connection, namespace: str, pods: Pods | None) -> Iterator[Finding]:
    """Whether the namespace's ResourceQuotas leave room for the pods; without pods, for any."""
    try:
        found = cluster.core.list_namespaced_resource_quota(namespace).items
    except client.ApiException as error:
        yield may_not("quota", error, "list ResourceQuotas")
        return
    if not found:
        yield Finding(Verdict.OK, "quota", f"namespace {namespace} has no ResourceQuota")
    for quota in found:
        name = quota.metadata.name
        others = quotascopes.leave_out(quota.spec, pods.spec if pods else None)
        if others:
            yield Finding(Verdict.OK, "quota", f"{name} is for other pods ({others})")
            continue
        full = list(_full(quota.status.hard or {}, quota.status.used or {}, pods))
        if full:
            remedy = "Raise it, or wait for other pods to end."
            yield Finding(Verdict.PROBLEM, "quota", f"{name} has no room: {', '.join(full)}", remedy)
        else:
            yield Finding(Verdict.OK, "quota", f"{name} has room")


def _full(hard: Mapping[str, str], used: Mapping[str, str], pods: Pods | None) -> Iterator[str]:
    """What a quota lacks for the pods, their Job, and the Service by which several find each other."""
    count = pods.count if pods else 1
    each = _of_each(pods)
    once = {"count/jobs.batch": "1"}
    if count > 1:
        once |= {"services": "1", "count/services": "1"}
    for name, limit in hard.items():
        number = count if name in each else 1
        value = each.get(name) or once.get(name) or "0"
        asked = number * parse(value)
        if asked and parse(str(used.get(name, "0"))) + asked > parse(str(limit)):
            shown = f"{number} x {value}" if number > 1 else value
            yield f"{name} ({used.get(name, 0)} of {limit} used, {shown} asked)"


def _of_each(pods: Pods | None) -> dict[str, str]:
    """What each pod counts for in a quota, by the quota's names."""
    wanted = {"pods": "1", "count/pods": "1"}
    for kind in _REQUESTED:
        values = pods.resources.get(kind.rstrip("."), {}) if pods else {}
        wanted |= {f"{kind}{name}": str(value) for name, value in values.items()}
    short = ("cpu", "memory", "ephemeral-storage")
    return wanted | {name: wanted[f"requests.{name}"] for name in short if f"requests.{name}" in wanted}
