"""How an attempt's nodes are obtained: on demand, spot, flex-start, a reservation, a compute class, Kueue's queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemmatune_api import gke, names
from gemmatune_api.base import seconds
from gemmatune_api.placement import SchedulingSpec
from gemmatune_api.spec import FineTuneSpec, GemmaFineTune
from gemmatune_operator.ports import Object

ON_DEMAND, SPOT, FLEX_START, RESERVATION = "onDemand", "spot", "flexStart", "reservation"
"""Values of spec.provisioning.mode."""
UNBOUNDED = frozenset({FLEX_START, RESERVATION})
"""Modes whose nodes may be waited for without end: the wait is what was asked for."""
SPOT_GRACE_SECONDS = 30
"""GKE gives an ordinary pod of a spot node 15 seconds, whatever is written; the rest serves a deletion by us."""
GRACE_SECONDS = 120
"""Node maintenance waits for it (up to an hour): time to end a step and to save. After a node is lost, the next attempt
waits for it too, so it is no longer than that."""
BACKSTOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a mode adds to an attempt's pods and Job."""

    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Object] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    """Of the pods."""
    grace: int = GRACE_SECONDS
    job_labels: dict[str, str] = field(default_factory=dict)
    job_annotations: dict[str, str] = field(default_factory=dict)


def capacity(resource: GemmaFineTune, mode: str) -> Capacity:
    """What an attempt in this mode needs; the mode is the attempt's, which a fallback makes differ from the spec's."""
    spec = resource.spec
    scheduling = spec.scheduling or SchedulingSpec()
    selector, tolerations = _of_mode(spec, mode)
    if scheduling.compute_class is not None:
        selector[gke.COMPUTE_CLASS] = scheduling.compute_class
    labels, annotations = dict[str, str](), dict[str, str]()
    if scheduling.queue_name is not None:
        labels[gke.KUEUE_QUEUE] = scheduling.queue_name
        priority = resource.metadata.labels.get(gke.KUEUE_PRIORITY)
        if priority is not None:
            labels[gke.KUEUE_PRIORITY] = priority
        if mode == FLEX_START:
            tolerations.append(_tolerates(gke.QUEUED))
            rest = rest_of_deadline(resource)
            shortest, longest = gke.FLEX_START_SECONDS
            if rest is not None:
                annotations[gke.KUEUE_MAX_RUN] = str(min(max(rest + BACKSTOP_SECONDS, shortest), longest))
    return Capacity(
        node_selector=selector,
        tolerations=tolerations,
        # The autoscaler may not move a trainer to another node; spot nodes go away whatever it says.
        annotations={} if mode == SPOT else {names.ANNOTATION_SAFE_TO_EVICT: "false"},
        grace=SPOT_GRACE_SECONDS if mode == SPOT else GRACE_SECONDS,
        job_labels=labels,
        job_annotations=annotations,
    )


def rest_of_deadline(resource: GemmaFineTune) -> int | None:
    """Seconds of limits.deadline that earlier attempts left; None where the run has no deadline."""
    limits = resource.spec.limits
    if limits is None or limits.deadline is None:
        return None
    timers = (resource.status or {}).get("timers") or {}
    return max(0, seconds(limits.deadline) - int(timers.get("activeSeconds", 0)))


def active_deadline(resource: GemmaFineTune, mode: str) -> int | None:
    """Seconds after which Kubernetes ends the Job, should the operator be away when limits.deadline expires.

    The Job's clock runs while it waits for its node, which limits.deadline does not count: so the longest wait is
    added. None where the run has no deadline, or its wait no end.
    """
    rest, limits = rest_of_deadline(resource), resource.spec.limits
    if rest is None or limits is None or mode in UNBOUNDED:
        return None
    wait = seconds(limits.pending_deadline) if limits.pending_deadline else 0
    return rest + wait + BACKSTOP_SECONDS


def _of_mode(spec: FineTuneSpec, mode: str) -> tuple[dict[str, str], list[Object]]:
    """Node selector and tolerations of a mode."""
    if mode == SPOT:
        return {gke.SPOT: "true"}, [_tolerates(gke.SPOT, "true")]
    if mode == FLEX_START:
        return {gke.FLEX_START: "true"}, [_tolerates(gke.FLEX_START, "true")]
    reservation = spec.provisioning.reservation if spec.provisioning else None
    if mode == RESERVATION and reservation is not None:
        project, _, name = reservation.rpartition("/")
        shared = {gke.RESERVATION_PROJECT: project} if project else {}
        return {gke.RESERVATION_AFFINITY: "specific", gke.RESERVATION_NAME: name, **shared}, []
    return {}, []


def _tolerates(key: str, value: str | None = None) -> Object:
    matched = {"operator": "Exists"} if value is None else {"operator": "Equal", "value": value}
    return {"key": key, **matched, "effect": "NoSchedule"}
