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
_NODE_LOST = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})


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
    pod state > the Job's message, which survives the pod. Of several pods, the first to end counts.
    """
    if job.complete:
        return _completed(job)
    if not (job.failed or job.failure_target):
        return None
    if job.failure_reason == "DeadlineExceeded":
        message = "The Job reached its activeDeadlineSeconds, the backstop of limits.deadline."
        return cause(Reason.DEADLINE_EXCEEDED, message)
    failed = sorted((pod for pod in job.pods if _tells(pod)), key=_end)
    return _of_pod(failed[0]) if failed else _of_job(job)


def vanished(job: str) -> Cause:
    """The Job of an open attempt does not exist."""
    return cause(Reason.JOB_VANISHED, f"The Job {job} was deleted by someone else.")


def lost(pod: PodView) -> Cause:
    """A pod stays on a node that no longer answers."""
    message = f"The pod {pod.name} should have ended long ago: its node {pod.node} does not answer."
    return cause(Reason.NODE_LOST, message, pod=pod)


def _completed(job: JobView) -> Cause:
    pod = next((pod for pod in job.pods if pod.phase == "Succeeded"), None)
    said = from_text(pod.termination_message, TerminationMessage) if pod else None
    return cause(Reason.COMPLETED, "The trainer ended with exit code 0.", pod=pod, said=said)


def _tells(pod: PodView) -> bool:
    return pod.phase == "Failed" or bool(pod.disruption) or bool(pod.exit_code)


def _end(pod: PodView) -> tuple[datetime, str]:
    return pod.finished or datetime.max.replace(tzinfo=UTC), pod.name


def _of_pod(pod: PodView) -> Cause:
    said = from_text(pod.termination_message, TerminationMessage)
    where = f"The pod {pod.name} on node {pod.node or 'unknown'}"
    if pod.disruption:
        reason = Reason.NODE_LOST if pod.disruption in _NODE_LOST else Reason.PREEMPTED
        detail = f": {pod.disruption_message}" if pod.disruption_message else ""
        return cause(reason, f"{where} was disrupted ({pod.disruption}){detail}", pod=pod, said=said)
    if pod.termination_reason == "OOMKilled":
        return cause(Reason.HOST_OUT_OF_MEMORY, f"{where} used more memory than its limit.", pod=pod, said=said)
    if pod.reason == "Evicted":  # its container shows some signal's exit code, which says nothing
        return cause(Reason.DISK_FULL, f"{where} was evicted: {pod.message or 'no message'}", pod=pod, said=said)
    if pod.termination_reason == "ContainerStatusUnknown":
        return cause(Reason.POD_LOST, f"{where} ended without anybody seeing how.", pod=pod)
    if pod.exit_code is None:
        detail = " ".join(part for part in (pod.reason, pod.message) if part) or "no reason given"
        return cause(Reason.POD_REJECTED, f"{where} never ran: {detail}", pod=pod)
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
    mount = _newest(pod.events, "FailedMount")
    if mount is not None and "secret" in mount.message.lower():
        return cause(Reason.SECRET_MISSING, mount.message, pod=pod)
    if not pod.scheduled:
        return _not_scheduled(pod)
    return cause(Reason.PROVISIONING, f"The pod {pod.name} starts on node {pod.node}.", pod=pod)


def _not_created(job: JobView) -> Cause:
    event = _newest(job.events, "FailedCreate")
    if event is None:
        return cause(Reason.PROVISIONING, f"The Job {job.name} is about to make its pod.")
    if "exceeded quota" in event.message:
        return cause(Reason.QUOTA_EXCEEDED, event.message)
    return cause(Reason.POLICY_DENIED, event.message)


def _not_configured(pod: PodView) -> Cause:
    if "secret" in pod.waiting_message.lower():
        return cause(Reason.SECRET_MISSING, pod.waiting_message, pod=pod)
    message = f"The container cannot start: {pod.waiting_message}"
    return cause(Reason.PROVISIONING, message, "Correct pod.env.", pod=pod)


def _not_scheduled(pod: PodView) -> Cause:
    refused = _newest(pod.events, "FailedScaleUp")
    if refused is not None and _NO_CAPACITY.search(refused.message):
        return cause(Reason.CAPACITY_UNAVAILABLE, refused.message, pod=pod)
    growing = _newest(pod.events, "TriggeredScaleUp")
    if growing is not None and refused is None:
        return cause(Reason.PROVISIONING, f"A node is being made: {growing.message}", pod=pod)
    if pod.unscheduled_message:
        return cause(Reason.UNSCHEDULABLE, pod.unscheduled_message, pod=pod)
    return cause(Reason.PROVISIONING, f"The pod {pod.name} waits for its node.", pod=pod)


def _newest(events: tuple[EventView, ...], reason: str) -> EventView | None:
    return next((event for event in reversed(events) if event.reason == reason), None)
