"""Why an attempt ended, or why it waits: Job, pods and events -> Cause. Pure, and never an exception on odd input."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import EXIT_REASONS, REASONS, Reason
from gemmatune_operator.views import EventView, JobView, PodView

SIGKILL_EXIT = 137
_LINE_CHARACTERS = 500
_EXIT_IN_MESSAGE = re.compile(r"failed with exit code (\d{1,3}) matching")
_CONDITION_IN_MESSAGE = re.compile(r"has condition DisruptionTarget matching")
_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_NO_CAPACITY = re.compile(r"out of resources|stockout|RESOURCE_POOL_EXHAUSTED|GCE quota|not enough resources", re.I)
_NOT_MOUNTED = ("FailedMount", "FailedAttachVolume")
_NODE_LOST = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
_BY_DELETION = frozenset({Reason.INTERRUPTED, Reason.KILLED, Reason.POD_LOST})
"""How a pod ends that is deleted along with its Job."""
_DISRUPTIONS: dict[str, str] = {
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "EvictionByEvictionAPI": "it was evicted, as when a node is drained",
    "TerminationByKubelet": "its node was shut down or ran short of memory or disk",
    "DeletionByTaintManager": "its node no longer answers or was tainted",
    "DeletionByPodGC": "its node no longer exists",
}
"""Reasons of DisruptionTarget (Kubernetes 1.36) in words."""


class Answer(StrEnum):
    """What a cause asks for."""

    SUCCEED = "succeed"
    FREE = "free"
    """A new attempt that counts for no retry, capped by limits.maxPreemptions."""
    COUNTED = "counted"
    """A new attempt that counts, capped by limits.maxRetries."""
    DOWNSHIFT = "downshift"
    """A new attempt with a smaller micro-batch or with checkpointing, capped on its own."""
    FAIL = "fail"
    """The run ends: another attempt would end the same way."""
    WAIT = "wait"
    """The attempt goes on; the condition says why it waits."""


ANSWERS: dict[Reason, Answer] = {
    Reason.COMPLETED: Answer.SUCCEED,
    Reason.PREEMPTED: Answer.FREE,
    Reason.NODE_LOST: Answer.FREE,
    Reason.POD_REJECTED: Answer.FREE,
    Reason.INTERRUPTED: Answer.FREE,
    Reason.EVICTED_BY_QUEUE: Answer.FREE,
    Reason.ACCELERATOR_OUT_OF_MEMORY: Answer.DOWNSHIFT,
    Reason.HOST_OUT_OF_MEMORY: Answer.COUNTED,
    Reason.DISK_FULL: Answer.COUNTED,
    Reason.STALLED: Answer.COUNTED,
    Reason.KILLED: Answer.COUNTED,
    Reason.STORAGE_UNAVAILABLE: Answer.COUNTED,
    Reason.HUB_UNAVAILABLE: Answer.COUNTED,
    Reason.CRASHED: Answer.COUNTED,
    Reason.JOB_VANISHED: Answer.COUNTED,
    Reason.POD_LOST: Answer.COUNTED,
    Reason.RESULT_MISSING: Answer.COUNTED,
    Reason.INVALID_CONFIG: Answer.FAIL,
    Reason.ACCESS_DENIED: Answer.FAIL,
    Reason.DATA_INVALID: Answer.FAIL,
    Reason.OUTPUT_IN_USE: Answer.FAIL,
    Reason.LOSS_DIVERGED: Answer.FAIL,
    Reason.DEADLINE_EXCEEDED: Answer.FAIL,
    Reason.BUDGET_EXCEEDED: Answer.FAIL,
    Reason.IMAGE_PULL_FAILED: Answer.WAIT,
    Reason.SECRET_MISSING: Answer.WAIT,
    Reason.UNSCHEDULABLE: Answer.WAIT,
    Reason.QUOTA_EXCEEDED: Answer.WAIT,
    Reason.CAPACITY_UNAVAILABLE: Answer.WAIT,
    Reason.POLICY_DENIED: Answer.WAIT,
    Reason.PROVISIONING: Answer.WAIT,
}
"""The table of causes (Stalled, DeadlineExceeded and the like also come from timers, not only from pods)."""

FREE_ON_SPOT = frozenset({Reason.JOB_VANISHED, Reason.POD_LOST})
"""Causes that on spot nodes are most likely a preemption nobody saw."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt ended or waits, in words."""

    reason: Reason
    message: str
    remedy: str = ""
    step: int | None = None
    """Step that the trainer named."""
    pod: PodView | None = None
    """The pod that tells."""
    said: TerminationMessage | None = None
    """The trainer's own words."""

    @property
    def answer(self) -> Answer:
        """What it asks for."""
        return ANSWERS[self.reason]

    @property
    def ordinary(self) -> bool:
        """Whether it is a wait that every start has, and nothing that anybody must know."""
        return self.reason is Reason.PROVISIONING and not self.remedy

    @property
    def sentence(self) -> str:
        """The message, so that another sentence may follow."""
        text = self.message.rstrip()
        return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def cause(
    reason: Reason,
    message: str = "",
    remedy: str = "",
    pod: PodView | None = None,
    said: TerminationMessage | None = None,
) -> Cause:
    """A cause with the usual words where it has none of its own."""
    text = REASONS[reason]
    return Cause(
        reason=reason,
        message=message or text.meaning,
        remedy=remedy or text.remedy,
        step=said.step if said else None,
        pod=pod,
        said=said,
    )


def ended(job: JobView) -> Cause | None:
    """Why the Job's attempt ended; None while it goes on.

    Precedence: the Job's own deadline (it is what ended the pod) > DisruptionTarget > OOMKilled, Evicted > exit code >
    pod state > the Job's message, which survives the pod. Of several pods, the first to be lost counts.
    """
    if job.complete:
        return completed(job)
    if not (job.failed or job.failure_target):
        return None
    if job.failure_reason == "DeadlineExceeded":
        message = "The Job reached its activeDeadlineSeconds, the backstop of limits.deadline."
        return cause(Reason.DEADLINE_EXCEEDED, message)
    found = _of_pods(job) or _of_job(job)
    return vanished(job.name) if job.deleting and found.reason in _BY_DELETION else found


def ending(job: JobView) -> Cause | None:
    """Why an attempt that has not ended yet is about to; None where nothing says so.

    A pod is disrupted, or deleted, up to minutes before its end: until its grace period is over, or until its node is
    given up. What ends it in fact is said by `ended`, later.
    """
    if job.deleting:
        return vanished(job.name)
    pods = [pod for pod in job.pods if pod.disruption]
    if pods:
        return _of_pod(min(pods, key=lambda pod: _end(job, pod)))
    deleted = next((pod for pod in job.pods if pod.deleted is not None and not pod.ended), None)
    if deleted is None or job.suspended:  # who suspends a Job takes its pods away and gives them back
        return None
    message = f"The pod {deleted.name} is being deleted, not by the operator."
    return cause(Reason.INTERRUPTED, message, pod=deleted)


def vanished(job: str) -> Cause:
    """The Job of an open attempt does not exist."""
    return cause(Reason.JOB_VANISHED, f"The Job {job} was deleted by someone else.")


def lost(pod: PodView) -> Cause:
    """A pod stays on a node that no longer answers."""
    message = f"The pod {pod.name} should have ended long ago: its node {pod.node} does not answer."
    return cause(Reason.NODE_LOST, message, pod=pod)


def completed(job: JobView) -> Cause:
    """How a trainer ended that succeeded, in its own words where its pod is still there."""
    pod = next((pod for pod in job.pods if pod.phase == "Succeeded"), None)
    said = from_text(pod.termination_message, TerminationMessage) if pod else None
    return cause(Reason.COMPLETED, "The trainer ended with exit code 0.", pod=pod, said=said)


def _tells(pod: PodView) -> bool:
    return pod.phase == "Failed" or bool(pod.disruption) or bool(pod.exit_code)


def _of_pods(job: JobView) -> Cause | None:
    told = [pod for pod in job.pods if _tells(pod)]
    return _of_pod(min(told, key=lambda pod: _end(job, pod))) if told else None


def _end(job: JobView, pod: PodView) -> tuple[datetime, bool, bool, str]:
    """Orders pods by when they were lost.

    Times are whole seconds: within one, pods that the Job controller deleted because another had failed come last, and
    the pod that the Job's message names comes first.
    """
    times = [time for time in (pod.disrupted, pod.finished) if time is not None]
    first = min(times) if times else datetime.max.replace(tzinfo=UTC)
    victim = pod.deleted is not None and not pod.disruption
    return first, victim, f"/{pod.name} " not in job.failure_message, pod.name


def _of_pod(pod: PodView) -> Cause:
    said = from_text(pod.termination_message, TerminationMessage)
    where = f"The pod {pod.name} on node {pod.node or 'unknown'}"
    if pod.disruption:
        reason = Reason.NODE_LOST if pod.disruption in _NODE_LOST else Reason.PREEMPTED
        words = [_DISRUPTIONS.get(pod.disruption, ""), pod.disruption_message]
        detail = "; ".join(word for word in words if word)
        message = f"{where} was disrupted ({pod.disruption})" + (f": {detail}" if detail else "")
        return cause(reason, message, pod=pod, said=said)
    if pod.termination_reason == "OOMKilled":
        message = f"{where} used more host memory than its limit, and was killed."
        return cause(Reason.HOST_OUT_OF_MEMORY, message, pod=pod, said=said)
    if pod.reason == "Evicted":  # its container shows some signal's exit code, which says nothing
        return cause(Reason.DISK_FULL, f"{where} was evicted: {pod.message or 'no message'}", pod=pod, said=said)
    if pod.termination_reason == "ContainerStatusUnknown" or (pod.exit_code is None and pod.started is not None):
        return cause(Reason.POD_LOST, f"{where} ended without anybody seeing how.", pod=pod)
    if pod.exit_code is None and pod.deleted is not None and not pod.reason:
        return cause(Reason.POD_LOST, f"{where} was deleted before it ran.", pod=pod)
    if pod.exit_code is None:
        detail = " ".join(part for part in (pod.reason, pod.message) if part) or "no reason given"
        return cause(Reason.POD_REJECTED, f"{where} never ran, the node refused it: {detail}", pod=pod)
    return _of_exit(pod, pod.exit_code, said)


def _of_exit(pod: PodView, code: int, said: TerminationMessage | None) -> Cause:
    reason = EXIT_REASONS.get(code, Reason.KILLED if code == SIGKILL_EXIT else Reason.CRASHED)
    if said is not None and said.message:
        return cause(reason, said.message, said.remedy, pod=pod, said=said)
    line = last_line(pod.termination_message)
    message = f"The trainer ended with exit code {code}" + (f": {line}" if line else f". {REASONS[reason].meaning}")
    return cause(reason, message, pod=pod, said=said)


def _of_job(job: JobView) -> Cause:
    """What the Job's message tells when the pod is gone."""
    if _CONDITION_IN_MESSAGE.search(job.failure_message):
        return cause(Reason.PREEMPTED, f"{job.failure_message}.")
    match = _EXIT_IN_MESSAGE.search(job.failure_message)
    if match:
        reason = EXIT_REASONS.get(int(match[1]), Reason.CRASHED)
        return cause(reason, f"{job.failure_message}. The pod is gone, and its message with it.")
    detail = f" ({job.failure_reason}: {job.failure_message})" if job.failure_reason else ""
    return cause(Reason.POD_LOST, f"The pod of the Job {job.name} is gone without a final state{detail}.")


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LINE_CHARACTERS] if lines else ""


def waiting(job: JobView) -> Cause:
    """Why the Job's pods do not run yet."""
    if not job.pods:
        return _not_created(job)
    pods = [pod for pod in job.pods if pod.phase == "Pending"]
    if not pods:
        return cause(Reason.PROVISIONING, "The pod is about to run.")
    pod = pods[0]
    if pod.waiting_reason in _IMAGE_REASONS:
        return cause(Reason.IMAGE_PULL_FAILED, f"{pod.waiting_reason}: {pod.waiting_message}".rstrip(": "), pod=pod)
    if pod.waiting_reason == "CreateContainerConfigError":
        return _not_configured(pod)
    if not pod.scheduled:
        return _not_scheduled(pod)
    mount = _newest(pod.events, *_NOT_MOUNTED)
    if mount is not None and not pod.mounted:
        return _not_mounted(pod, mount.message)
    return cause(Reason.PROVISIONING, f"The pod {pod.name} starts on node {pod.node}.", pod=pod)


def _not_created(job: JobView) -> Cause:
    event = _newest(job.events, "FailedCreate")
    if event is None:
        return cause(Reason.PROVISIONING, f"The Job {job.name} is about to make its pod.")
    # Each try has another random pod name, which is no news.
    message = re.sub(rf"\b{re.escape(job.name)}(-\d+)?-[a-z0-9]{{5}}\b", f"{job.name}-…", event.message)
    return cause(Reason.QUOTA_EXCEEDED if "exceeded quota" in message else Reason.POLICY_DENIED, message)


def _not_configured(pod: PodView) -> Cause:
    if "secret" in pod.waiting_message.lower():
        return cause(Reason.SECRET_MISSING, pod.waiting_message, pod=pod)
    message = f"The container cannot start: {pod.waiting_message}"
    return cause(Reason.PROVISIONING, message, "Create what the message names, or correct pod.env.", pod=pod)


def _not_mounted(pod: PodView, message: str) -> Cause:
    if "secret" in message.lower():
        return cause(Reason.SECRET_MISSING, message, pod=pod)
    text = f"A volume of the pod {pod.name} cannot be mounted: {message}"
    remedy = "Create what the message names; the pod then starts by itself."
    return cause(Reason.PROVISIONING, text, remedy, pod=pod)


def _not_scheduled(pod: PodView) -> Cause:
    scaling = _newest(pod.events, "FailedScaleUp", "TriggeredScaleUp")
    if scaling is not None and scaling.reason == "TriggeredScaleUp":
        return cause(Reason.PROVISIONING, f"A node is being made: {scaling.message}", pod=pod)
    if scaling is not None and _NO_CAPACITY.search(scaling.message):
        return cause(Reason.CAPACITY_UNAVAILABLE, scaling.message, pod=pod)
    if pod.unscheduled_message:
        return cause(Reason.UNSCHEDULABLE, pod.unscheduled_message, pod=pod)
    return cause(Reason.PROVISIONING, f"The pod {pod.name} waits for its node.", pod=pod)


def _newest(events: tuple[EventView, ...], *reasons: str) -> EventView | None:
    return next((event for event in reversed(events) if event.reason in reasons), None)
