"""What the API server says about a run, as frozen data: the resource, its Jobs, their pods and telling events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from gemmatune_api import names
from gemmatune_api.names import CONTAINER, Reason
from gemmatune_api.status import Attempt, FineTuneStatus
from gemmatune_operator import conditions
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.manifests import quantities
from gemmatune_operator.ports import Cluster, Object

_JOB_NAME_LABELS = ("batch.kubernetes.io/job-name", "job-name")


@dataclass(frozen=True, slots=True)
class EventView:
    """An Event: why something does not happen."""

    reason: str
    message: str
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of an attempt, as far as causes read it."""

    name: str
    uid: str = ""
    job: str = ""
    phase: str = ""
    node: str = ""
    scheduled: bool = False
    unscheduled_message: str = ""
    waiting_reason: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    termination_reason: str = ""
    termination_message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    disruption: str = ""
    """Reason of DisruptionTarget=True, or empty."""
    disruption_message: str = ""
    reason: str = ""
    """status.reason, such as Evicted or UnexpectedAdmissionError."""
    message: str = ""
    deleted: datetime | None = None
    """When its grace period ends (metadata.deletionTimestamp), while it is being deleted."""
    events: tuple[EventView, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether none of its containers runs any more."""
        return self.phase in ("Succeeded", "Failed")

    def overdue(self, now: datetime, allowance: float) -> bool:
        """Whether it should have been gone for `allowance` seconds: its node is lost."""
        return self.deleted is not None and (now - self.deleted).total_seconds() > allowance


@dataclass(frozen=True, slots=True)
class JobView:
    """A Job of the run."""

    name: str
    uid: str = ""
    owner_uid: str = ""
    deleting: bool = False
    complete: bool = False
    failed: bool = False
    failure_target: bool = False
    failure_reason: str = ""
    failure_message: str = ""
    active: int = 0
    terminating: int = 0
    wanted: int = 1
    """Pods of one attempt."""
    created: datetime | None = None
    memory: int = 0
    """Memory limit of the trainer's container in bytes; 0: none."""
    ephemeral_storage: int = 0
    """Its ephemeral storage limit in bytes; 0: none."""
    pods: tuple[PodView, ...] = ()
    events: tuple[EventView, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it is Complete or Failed."""
        return self.complete or self.failed

    @property
    def running(self) -> bool:
        """Whether all of its pods run."""
        return sum(pod.phase == "Running" and pod.deleted is None for pod in self.pods) >= self.wanted


@dataclass(frozen=True, slots=True)
class Refusal:
    """A Job that the API server did not let us create, or whose name is taken."""

    job: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node offers to pods, in bytes; 0 where unknown."""

    memory: int = 0
    ephemeral_storage: int = 0


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
    if _unclaimed(observed):
        others = await cluster.list_objects(names.KIND, namespace, {})
        observed = replace(observed, rivals=tuple(o for o in others if _meta(o).get("uid") != observed.uid))
    if observed.status.prepare is None and not observed.status.attempts:
        return observed  # a new run has no Jobs, and a taken name shows when its first one is created
    labels = {names.LABEL_RUN_UID: observed.uid}
    jobs = await cluster.list_objects("Job", namespace, labels)
    jobs += await _missing(cluster, observed, jobs)
    pods = await cluster.list_objects("Pod", namespace, labels)
    observed = with_jobs(observed, jobs, pods)
    return await _with_details(cluster, observed)


def _unclaimed(observed: Observed) -> bool:
    """Whether this generation of the spec has not been accepted yet: another run may hold its output."""
    status = observed.status
    accepted = conditions.is_true(status.conditions, names.ConditionType.ACCEPTED)
    return not status.attempts and not (accepted and status.observed_generation == observed.generation)


async def _missing(cluster: Cluster, observed: Observed, jobs: list[Object]) -> list[Object]:
    """The Job of the open attempt, read by name where the list lacks it: its absence is a cause."""
    attempt = open_attempt(observed.status)
    if attempt is None or attempt.start_time is None or any(_meta(job).get("name") == attempt.job for job in jobs):
        return []
    found = await cluster.get("Job", observed.namespace, attempt.job)
    return [found] if found is not None and owner_uid(found) == observed.uid else []


async def _with_details(cluster: Cluster, observed: Observed) -> Observed:
    """Adds the events of Jobs and pods that do not run, and the machines of pods that lacked memory or disk."""
    jobs: dict[str, JobView] = {}
    machines: dict[str, Machine] = {}
    for name, job in observed.jobs.items():
        if not (job.finished or job.running or job.deleting):
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
    attempt = open_attempt(status)
    return attempt is not None and attempt.job == job


def open_attempt(status: FineTuneStatus) -> Attempt | None:
    """The attempt that was recorded and not closed."""
    last = status.attempts[-1] if status.attempts else None
    return last if last is not None and last.end_time is None else None


def of_resource(raw: Object) -> Observed:
    """The resource alone."""
    meta = _meta(raw)
    annotations = _dict(meta.get("annotations"))
    return Observed(
        raw=raw,
        namespace=str(meta.get("namespace") or "default"),
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        generation=_int(meta.get("generation")),
        resource_version=str(meta.get("resourceVersion") or ""),
        deleting=meta.get("deletionTimestamp") is not None,
        retry=annotations.get(names.ANNOTATION_RETRY),
        status=status_of(raw.get("status")),
    )


def status_of(stored: Any) -> FineTuneStatus:
    """The status as stored; a field that cannot be read (an odd write by hand) counts as absent."""
    known = {}
    for name, value in _dict(stored).items():
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
        name = str(_meta(raw).get("name") or "")
        by_name[name] = job_view(raw, tuple(pod for pod in views if pod.job == name))
    return replace(observed, jobs=by_name, lost_pods=tuple(pod for pod in views if pod.job not in by_name))


def job_view(raw: Object, pods: tuple[PodView, ...] = ()) -> JobView:
    """A Job and its pods."""
    meta, spec, status = _meta(raw), _dict(raw.get("spec")), _dict(raw.get("status"))
    true = _conditions(status)
    failure = true.get("Failed") or true.get("FailureTarget") or {}
    template = _dict(_dict(spec.get("template")).get("spec"))
    containers = [_dict(item) for item in _list(template.get("containers"))]
    limits = _dict(
        _dict(next((c.get("resources") for c in containers if c.get("name") == CONTAINER), {})).get("limits")
    )
    return JobView(
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        owner_uid=owner_uid(raw),
        deleting=meta.get("deletionTimestamp") is not None,
        complete="Complete" in true,
        failed="Failed" in true,
        failure_target="FailureTarget" in true,
        failure_reason=str(failure.get("reason") or ""),
        failure_message=str(failure.get("message") or ""),
        active=_int(status.get("active")),
        terminating=_int(status.get("terminating")),
        wanted=max(1, _int(spec.get("parallelism"), 1)),
        created=_time(meta.get("creationTimestamp")),
        memory=_bytes(limits.get("memory")),
        ephemeral_storage=_bytes(limits.get("ephemeral-storage")),
        pods=pods,
    )


def pod_view(raw: Object) -> PodView:
    """A pod; the trainer's container is the one that speaks."""
    meta, status = _meta(raw), _dict(raw.get("status"))
    true = _conditions(status)
    container = _container_status(status)
    state = _dict(container.get("state"))
    ended = _dict(state.get("terminated")) or _dict(_dict(container.get("lastState")).get("terminated"))
    waiting = _dict(state.get("waiting"))
    disruption = true.get("DisruptionTarget") or {}
    unscheduled = next((_dict(c) for c in _list(status.get("conditions")) if _is_unscheduled(c)), {})
    return PodView(
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        job=_job_of(meta),
        phase=str(status.get("phase") or "Pending"),
        node=str(_dict(raw.get("spec")).get("nodeName") or ""),
        scheduled=not unscheduled and ("PodScheduled" in true or bool(_dict(raw.get("spec")).get("nodeName"))),
        unscheduled_message=str(unscheduled.get("message") or ""),
        waiting_reason=str(waiting.get("reason") or ""),
        waiting_message=str(waiting.get("message") or ""),
        exit_code=_int(ended.get("exitCode")) if ended else None,
        termination_reason=str(ended.get("reason") or ""),
        termination_message=str(ended.get("message") or ""),
        started=_time(ended.get("startedAt")) or _time(_dict(state.get("running")).get("startedAt")),
        finished=_time(ended.get("finishedAt")),
        disruption=str(disruption.get("reason") or "DisruptionTarget") if disruption else "",
        disruption_message=str(disruption.get("message") or ""),
        reason=str(status.get("reason") or ""),
        message=str(status.get("message") or ""),
        deleted=_time(meta.get("deletionTimestamp")),
    )


def events_of(raw: Iterable[Object]) -> tuple[EventView, ...]:
    """Events, the newest last."""
    views = [
        EventView(
            reason=str(event.get("reason") or ""),
            message=str(event.get("message") or event.get("note") or ""),
            last=_time(event.get("lastTimestamp")) or _time(event.get("eventTime")),
        )
        for event in map(_dict, raw)
    ]
    return tuple(sorted(views, key=lambda event: event.last.timestamp() if event.last else 0.0))


def machine_of(node: Object) -> Machine:
    """What a Node has to give."""
    allocatable = _dict(_dict(node.get("status")).get("allocatable"))
    return Machine(
        memory=_bytes(allocatable.get("memory")), ephemeral_storage=_bytes(allocatable.get("ephemeral-storage"))
    )


def owner_uid(raw: Object) -> str:
    """UID of the object's controlling owner, or empty."""
    owners = [_dict(owner) for owner in _list(_meta(raw).get("ownerReferences"))]
    return next((str(owner.get("uid") or "") for owner in owners if owner.get("controller")), "")


def _job_of(meta: Mapping[str, Any]) -> str:
    labels = _dict(meta.get("labels"))
    named = next((str(labels[label]) for label in _JOB_NAME_LABELS if labels.get(label)), "")
    owners = [_dict(owner) for owner in _list(meta.get("ownerReferences"))]
    return named or next((str(owner.get("name") or "") for owner in owners if owner.get("kind") == "Job"), "")


def _container_status(status: Mapping[str, Any]) -> dict[str, Any]:
    statuses = [_dict(item) for item in _list(status.get("containerStatuses"))]
    return next((item for item in statuses if item.get("name") == CONTAINER), statuses[0] if statuses else {})


def _conditions(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions that are True, by type."""
    items = [_dict(item) for item in _list(status.get("conditions"))]
    return {str(item.get("type")): item for item in items if str(item.get("status")) == "True"}


def _is_unscheduled(condition: Any) -> bool:
    item = _dict(condition)
    return item.get("type") == "PodScheduled" and str(item.get("status")) == "False"


def _meta(raw: Object) -> dict[str, Any]:
    return _dict(raw.get("metadata"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _int(value: Any, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _time(value: Any) -> datetime | None:
    return parse_time(value) if isinstance(value, str) else None


def _bytes(quantity: Any) -> int:
    try:
        return int(quantities.parse(quantity)) if quantity is not None else 0
    except (ArithmeticError, TypeError, ValueError):
        return 0
