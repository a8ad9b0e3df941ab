"""What the API server says about a run, as frozen data: the resource, its Jobs, their pods and telling events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from gemmatune_api import names
from gemmatune_api.names import Reason
from gemmatune_api.status import Attempt, FineTuneStatus, JobRecord
from gemmatune_operator import conditions
from gemmatune_operator.ports import Cluster, Object
from gemmatune_operator.views import (
    JobView,
    Machine,
    PodView,
    events_of,
    job_view,
    machine_of,
    mapping,
    metadata,
    owner_uid,
    pod_view,
    whole,
)

Read = Callable[[str, str, str], Awaitable[Object | None]]
"""`Cluster.get`, or the same for several looks at once."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A Job or Service that the API server did not let us create, or whose name is taken."""

    job: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """A run as it is now."""

    raw: Object
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool = False
    retry: str | None = None
    """Value of the retry annotation."""
    status: FineTuneStatus = field(default_factory=FineTuneStatus)
    jobs: Mapping[str, JobView] = field(default_factory=dict)
    lost_pods: tuple[PodView, ...] = ()
    """Pods of this run whose Job is gone."""
    rivals: tuple[Object, ...] = ()
    """Other resources of the namespace, read while this generation of the spec is not accepted."""
    namespace_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Data of the namespace's ConfigMap, read while the defaults are still to be taken."""
    machines: Mapping[str, Machine] = field(default_factory=dict)
    """Nodes by name, read where memory or disk ran out."""
    refusal: Refusal | None = None
    still_since: datetime | None = None
    """Since when, by this process's clock, step and heartbeat have not moved."""


async def observe(cluster: Cluster, namespace: str, name: str) -> Observed | None:
    """The run as the API server has it now; None where it does not exist.

    Raises:
        UnavailableError: the API server does not answer.
    """
    raw = await cluster.get(names.KIND, namespace, name)
    if raw is None:
        return None
    observed = of_resource(raw)
    if observed.deleting:
        return observed
    if unclaimed(observed):
        others = await cluster.list_objects(names.KIND, namespace, {})
        observed = replace(observed, rivals=tuple(o for o in others if metadata(o).get("uid") != observed.uid))
    observed = await with_defaults(cluster.get, observed)
    labels = {names.LABEL_RUN_UID: observed.uid}
    jobs = await cluster.list_objects("Job", namespace, labels)
    jobs += await _missing(cluster, observed, jobs)
    pods = await cluster.list_objects("Pod", namespace, labels)
    observed = with_jobs(observed, jobs, pods)
    return await _with_details(cluster, observed)


def unclaimed(observed: Observed) -> bool:
    """Whether this generation of the spec has not been accepted yet: another run may hold its output."""
    status = observed.status
    accepted = conditions.is_true(status.conditions, names.ConditionType.ACCEPTED)
    return not status.attempts and not (accepted and status.observed_generation == observed.generation)


def takes_defaults(observed: Observed) -> bool:
    """Whether the defaults of installation and namespace are taken now: until this generation of the spec is accepted,
    and anew by a retry before the first attempt. Later changes of them reach no run that has begun."""
    status = observed.status
    failed = conditions.is_true(status.conditions, names.ConditionType.FAILED)
    again = failed and observed.retry is not None and observed.retry != status.observed_retry
    return unclaimed(observed) or (again and not status.attempts)


async def with_defaults(read: Read, observed: Observed) -> Observed:
    """With the namespace's defaults, read live where they are to be taken.

    Raises:
        RefusedError, UnavailableError.
    """
    if not takes_defaults(observed):
        return observed
    found = await read("ConfigMap", observed.namespace, names.DEFAULTS_CONFIG_MAP)
    return replace(observed, namespace_defaults=mapping(mapping(found).get("data")))


def output_of(raw: Mapping[str, Any]) -> str:
    """Where a resource's results go, as it says or as it was resolved; empty where neither is known.

    Another resource may hold anything where no schema has checked it.
    """
    return asked_output(raw) or _uri(mapping(raw.get("status")).get("resolved"))


def asked_output(raw: Mapping[str, Any]) -> str:
    """The same as the resource itself says it; empty where the defaults decide."""
    return _uri(raw.get("spec"))


def _uri(spec: Any) -> str:
    return str(mapping(mapping(spec).get("output")).get("uri") or "").rstrip("/")


async def _missing(cluster: Cluster, observed: Observed, jobs: list[Object]) -> list[Object]:
    """The Job of the open attempt or merge, read by name where the list lacks it: its absence is a cause."""
    current = open_attempt(observed.status) or open_merge(observed.status)
    if current is None or current.start_time is None or any(metadata(job).get("name") == current.job for job in jobs):
        return []
    found = await cluster.get("Job", observed.namespace, current.job)
    return [found] if found is not None and owner_uid(found) == observed.uid else []


async def _with_details(cluster: Cluster, observed: Observed) -> Observed:
    """Adds the events of Jobs and pods that do not run, and the machines of pods that lacked memory or disk."""
    jobs: dict[str, JobView] = {}
    machines: dict[str, Machine] = {}
    for name, job in observed.jobs.items():
        if not (job.finished or job.running or job.deleting or job.suspended):
            pods = [await _with_events(cluster, observed.namespace, pod) for pod in job.pods]
            events = () if pods else events_of(await cluster.events(observed.namespace, job.uid))
            job = replace(job, pods=tuple(pods), events=events)
        for pod in job.pods:
            if pod.node and pod.node not in machines and _lacked(pod) and _is_open(observed.status, name):
                node = await cluster.get("Node", "", pod.node)
                machines[pod.node] = machine_of(node or {})
        jobs[name] = job
    return replace(observed, jobs=jobs, machines=machines)


async def _with_events(cluster: Cluster, namespace: str, pod: PodView) -> PodView:
    if pod.phase != "Pending":
        return pod
    return replace(pod, events=events_of(await cluster.events(namespace, pod.uid)))


def _lacked(pod: PodView) -> bool:
    return pod.termination_reason == "OOMKilled" or pod.reason == "Evicted" or pod.exit_code == names.ExitCode.DISK_FULL


def _is_open(status: FineTuneStatus, job: str) -> bool:
    current = open_attempt(status) or open_merge(status)
    return current is not None and current.job == job


def open_attempt(status: FineTuneStatus) -> Attempt | None:
    """The attempt that was recorded and not closed."""
    last = status.attempts[-1] if status.attempts else None
    return last if last is not None and last.end_time is None else None


def trained(status: FineTuneStatus) -> bool:
    """Whether the last attempt ended with a verified adapter: nothing but a merge can follow."""
    last = status.attempts[-1] if status.attempts else None
    return last is not None and last.end_time is not None and last.reason == Reason.COMPLETED


def open_merge(status: FineTuneStatus) -> JobRecord | None:
    """The merge that was recorded, while it goes on."""
    merging = conditions.has(status.conditions, names.ConditionType.SUCCEEDED, "False", Reason.MERGING)
    return status.merge if merging else None


def of_resource(raw: Object) -> Observed:
    """The resource alone."""
    meta = metadata(raw)
    annotations = mapping(meta.get("annotations"))
    return Observed(
        raw=raw,
        namespace=str(meta.get("namespace") or "default"),
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        generation=whole(meta.get("generation")),
        resource_version=str(meta.get("resourceVersion") or ""),
        deleting=meta.get("deletionTimestamp") is not None,
        retry=annotations.get(names.ANNOTATION_RETRY) or None,  # an empty one could never be said to be handled
        status=status_of(raw.get("status")),
    )


def status_of(stored: Any) -> FineTuneStatus:
    """The status as stored; a field that cannot be read (an odd write by hand) counts as absent."""
    try:
        return FineTuneStatus.model_validate(mapping(stored))
    except ValidationError:
        known = {}
    for name, value in mapping(stored).items():
        try:
            FineTuneStatus.model_validate({name: value})
        except ValidationError:
            continue
        known[name] = value
    return FineTuneStatus.model_validate(known)


def with_jobs(observed: Observed, jobs: Iterable[Object], pods: Iterable[Object]) -> Observed:
    """Adds Jobs and pods that carry the run's UID."""
    views = [pod_view(pod) for pod in pods]
    by_name = {}
    for raw in jobs:
        if owner_uid(raw) != observed.uid:
            continue  # a label alone proves nothing
        name = str(metadata(raw).get("name") or "")
        by_name[name] = job_view(raw, tuple(pod for pod in views if pod.job == name))
    return replace(observed, jobs=by_name, lost_pods=tuple(pod for pod in views if pod.job not in by_name))
