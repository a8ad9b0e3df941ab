"""Jobs, pods, Events and nodes as frozen data: what causes and policies read of them, from any JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gemmatune_api import gke
from gemmatune_api.names import ANNOTATION_GENERATION, CONTAINER
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.manifests import quantities
from gemmatune_operator.ports import Object

_JOB_NAME_LABELS = ("batch.kubernetes.io/job-name", "job-name")


@dataclass(frozen=True, slots=True)
class EventView:
    """An Event: why something does not happen."""

    reason: str
    message: str
    last: datetime | None = None

    @property
    def lacks_account(self) -> bool:
        """Whether a Job got no pod because its ServiceAccount does not exist."""
        return self.reason == "FailedCreate" and "serviceaccount" in self.message and "not found" in self.message


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of an attempt, as far as causes read it."""

    name: str
    uid: str = ""
    job: str = ""
    phase: str = ""
    node: str = ""
    scheduled: bool = False
    mounted: bool = False
    """Whether its sandbox runs: the kubelet makes it once all volumes are there."""
    unscheduled_message: str = ""
    waiting_reason: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    termination_reason: str = ""
    termination_message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    unready: bool = False
    """Its readiness probe fails, or has not been asked yet."""
    disruption: str = ""
    """Reason of DisruptionTarget=True, or empty."""
    disruption_message: str = ""
    disrupted: datetime | None = None
    """Since when DisruptionTarget is True."""
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

    @property
    def runs(self) -> bool:
        """Whether its containers run, and are not about to be stopped."""
        return self.phase == "Running" and self.deleted is None

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
    suspended: bool = False
    """Someone (Kueue) holds its pods back, or the Job controller does not know yet that it no longer does."""
    held: datetime | None = None
    """Since when the Job controller holds its pods back; its coming is what tells of a Job that was made suspended."""
    resumed: datetime | None = None
    """When it last ceased to be suspended."""
    queue: str = ""
    """Kueue's queue that it names."""
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
    generation: int | None = None
    """Generation of the spec that a preparation's Job was made for."""
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
        return sum(pod.runs for pod in self.pods) >= self.wanted

    @property
    def any_running(self) -> bool:
        """Whether one of its pods runs: the others may have ended."""
        return any(pod.runs for pod in self.pods)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node offers to pods, in bytes; 0 where unknown."""

    memory: int = 0
    ephemeral_storage: int = 0


def job_view(raw: Object, pods: tuple[PodView, ...] = ()) -> JobView:
    """A Job and its pods."""
    meta, spec, status = metadata(raw), mapping(raw.get("spec")), mapping(raw.get("status"))
    true = _conditions(status)
    failure = true.get("Failed") or true.get("FailureTarget") or {}
    template = mapping(mapping(spec.get("template")).get("spec"))
    containers = [mapping(item) for item in _list(template.get("containers"))]
    limits = mapping(
        mapping(next((c.get("resources") for c in containers if c.get("name") == CONTAINER), {})).get("limits")
    )
    return JobView(
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        owner_uid=owner_uid(raw),
        deleting=meta.get("deletionTimestamp") is not None,
        suspended=spec.get("suspend") is True or "Suspended" in true,
        held=_time((true.get("Suspended") or {}).get("lastTransitionTime")),
        resumed=_resumed(status),
        queue=str(mapping(meta.get("labels")).get(gke.KUEUE_QUEUE) or ""),
        complete="Complete" in true,
        failed="Failed" in true,
        failure_target="FailureTarget" in true,
        failure_reason=str(failure.get("reason") or ""),
        failure_message=str(failure.get("message") or ""),
        active=whole(status.get("active")),
        terminating=whole(status.get("terminating")),
        wanted=max(1, whole(spec.get("parallelism"), 1)),
        created=_time(meta.get("creationTimestamp")),
        generation=_number(mapping(meta.get("annotations")).get(ANNOTATION_GENERATION)),
        memory=_bytes(limits.get("memory")),
        ephemeral_storage=_bytes(limits.get("ephemeral-storage")),
        pods=pods,
    )


def _resumed(status: Mapping[str, Any]) -> datetime | None:
    """When a Job that was suspended ceased to be; None for one that never was, or is."""
    items = [mapping(item) for item in _list(status.get("conditions"))]
    found = next((item for item in items if item.get("type") == "Suspended"), {})
    return _time(found.get("lastTransitionTime")) if str(found.get("status")) == "False" else None


def pod_view(raw: Object) -> PodView:
    """A pod; the trainer's container is the one that speaks."""
    meta, status = metadata(raw), mapping(raw.get("status"))
    true = _conditions(status)
    container = _container_status(status)
    state = mapping(container.get("state"))
    ended = mapping(state.get("terminated")) or mapping(mapping(container.get("lastState")).get("terminated"))
    waiting = mapping(state.get("waiting"))
    disruption = true.get("DisruptionTarget") or {}
    unscheduled = next((mapping(c) for c in _list(status.get("conditions")) if _is_unscheduled(c)), {})
    return PodView(
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        job=_job_of(meta),
        phase=str(status.get("phase") or "Pending"),
        node=str(mapping(raw.get("spec")).get("nodeName") or ""),
        scheduled=not unscheduled and ("PodScheduled" in true or bool(mapping(raw.get("spec")).get("nodeName"))),
        mounted="PodReadyToStartContainers" in true,
        unscheduled_message=str(unscheduled.get("message") or ""),
        waiting_reason=str(waiting.get("reason") or ""),
        waiting_message=str(waiting.get("message") or ""),
        exit_code=whole(ended.get("exitCode")) if ended else None,
        termination_reason=str(ended.get("reason") or ""),
        termination_message=str(ended.get("message") or ""),
        started=_time(ended.get("startedAt")) or _time(mapping(state.get("running")).get("startedAt")),
        finished=_time(ended.get("finishedAt")),
        unready=any(_is(mapping(c), "Ready", "False") for c in _list(status.get("conditions"))),
        disruption=str(disruption.get("reason") or "DisruptionTarget") if disruption else "",
        disruption_message=str(disruption.get("message") or ""),
        disrupted=_time(disruption.get("lastTransitionTime")),
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
        for event in map(mapping, raw)
    ]
    return tuple(sorted(views, key=lambda event: event.last.timestamp() if event.last else 0.0))


def machine_of(node: Object) -> Machine:
    """What a Node has to give."""
    allocatable = mapping(mapping(node.get("status")).get("allocatable"))
    return Machine(
        memory=_bytes(allocatable.get("memory")), ephemeral_storage=_bytes(allocatable.get("ephemeral-storage"))
    )


def owner_uid(raw: Object) -> str:
    """UID of the object's controlling owner, or empty."""
    owners = [mapping(owner) for owner in _list(metadata(raw).get("ownerReferences"))]
    return next((str(owner.get("uid") or "") for owner in owners if owner.get("controller")), "")


def _job_of(meta: Mapping[str, Any]) -> str:
    labels = mapping(meta.get("labels"))
    named = next((str(labels[label]) for label in _JOB_NAME_LABELS if labels.get(label)), "")
    owners = [mapping(owner) for owner in _list(meta.get("ownerReferences"))]
    return named or next((str(owner.get("name") or "") for owner in owners if owner.get("kind") == "Job"), "")


def _container_status(status: Mapping[str, Any]) -> dict[str, Any]:
    statuses = [mapping(item) for item in _list(status.get("containerStatuses"))]
    return next((item for item in statuses if item.get("name") == CONTAINER), statuses[0] if statuses else {})


def _conditions(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions that are True, by type."""
    items = [mapping(item) for item in _list(status.get("conditions"))]
    return {str(item.get("type")): item for item in items if str(item.get("status")) == "True"}


def _is(condition: Mapping[str, Any], kind: str, status: str) -> bool:
    return condition.get("type") == kind and str(condition.get("status")) == status


def _is_unscheduled(condition: Any) -> bool:
    return _is(mapping(condition), "PodScheduled", "False")


def metadata(raw: Object) -> dict[str, Any]:
    """Its metadata, or an empty object."""
    return mapping(raw.get("metadata"))


def mapping(value: Any) -> dict[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def whole(value: Any, default: int = 0) -> int:
    """The value where it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _number(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() else None


def _time(value: Any) -> datetime | None:
    return parse_time(value) if isinstance(value, str) else None


def _bytes(quantity: Any) -> int:
    try:
        return int(quantities.parse(quantity)) if quantity is not None else 0
    except (ArithmeticError, TypeError, ValueError):
        return 0
