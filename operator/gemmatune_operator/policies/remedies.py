"""What a person can do about a cause, at the time it is shown: only fields that may change then are named."""

from __future__ import annotations

from collections.abc import Sequence

from gemmatune_api.handover import OTHER_IMAGE
from gemmatune_api.names import Reason
from gemmatune_operator.diagnose import Answer, Cause
from gemmatune_operator.settings import TRY_AGAIN

_ANOTHER_OUTPUT = "with another output.uri"
_NEW_RESOURCE = f"Create a new resource {_ANOTHER_OUTPUT}"
_MOVE = (
    "Pick a larger accelerator (it may change while the run is Failed), or create a new resource with another "
    "output.uri and a lower dataset.maxLength."
)
_FINAL: dict[Reason, str] = {
    Reason.INVALID_CONFIG: f"{_NEW_RESOURCE}, and correct there what the message names.",
    Reason.DATA_INVALID: f"{_NEW_RESOURCE}, and correct there what the message names.",
    Reason.LOSS_DIVERGED: "Create a new resource with a lower training.learningRate and another output.uri.",
    Reason.OUTPUT_IN_USE: f"{_NEW_RESOURCE}.",
}
"""Causes of settings that are fixed once an attempt exists: another try would end the same way."""
_OTHER_NODES = "Raise limits.maxPreemptions, or set provisioning.mode: onDemand."
_GIVEN_UP: dict[Reason, str] = {
    Reason.PREEMPTED: _OTHER_NODES,
    Reason.NODE_LOST: _OTHER_NODES,
    Reason.POD_REJECTED: _OTHER_NODES,
    Reason.INTERRUPTED: "Raise limits.maxPreemptions, and find out who stops the pods of this run.",
    Reason.EVICTED_BY_QUEUE: "Raise limits.maxPreemptions, or give the run a higher priority in its queue.",
    Reason.KILLED: "Raise pod.resources.limits.memory: most often the node itself ran out of memory.",
    Reason.JOB_VANISHED: "Find out who deletes the Jobs of this run.",
    Reason.POD_LOST: "Look at the events of the node that ran the pod.",
    Reason.RESULT_MISSING: "Read the pod's log: the trainer ended without naming a manifest.",
}
"""Remedies of causes that are retried by themselves, once the retries are used up."""
_FIXED_CHANGES = ("use ", "dataset.")
"""How remedies of the planner begin, or go on after `and`, that change what is fixed once an attempt exists."""
_SUSPENDED = "Most fields may change only while the run is suspended: set spec.suspend: true, {}, then suspend: false."
_WHILE_OPEN: dict[Reason, str] = {
    Reason.IMAGE_PULL_FAILED: _SUSPENDED.format("correct pod.image or add pod.imagePullSecrets"),
    Reason.UNSCHEDULABLE: (
        "Add a node pool of the accelerator. For another accelerator: set spec.suspend: true, change accelerator, "
        "then suspend: false."
    ),
    Reason.CAPACITY_UNAVAILABLE: (
        "Wait. For another provisioning.mode or accelerator: set spec.suspend: true, change it, then suspend: false."
    ),
    Reason.POLICY_DENIED: (
        "Change the policy that the message names; it is tried again by itself. For a field of pod: set "
        "spec.suspend: true, change it, then suspend: false."
    ),
    Reason.PROVISIONING: "Create what the message names; the pod then starts by itself.",
    Reason.ACCELERATOR_OUT_OF_MEMORY: (
        "Nothing at first: the next attempt needs less. If that does not help, a larger accelerator does."
    ),
    Reason.HOST_OUT_OF_MEMORY: (
        "Nothing at first: the next attempt gets more, up to what the machine has. If that does not help, raise "
        "pod.resources.limits.memory once the run is Failed or suspended."
    ),
    Reason.DISK_FULL: (
        "Nothing at first: the next attempt gets more, up to what the machine has. If that does not help, raise "
        "pod.resources.limits['ephemeral-storage'] once the run is Failed or suspended."
    ),
    Reason.KILLED: (
        "Nothing at first: the next attempt resumes. If it repeats, raise pod.resources.limits.memory once the run is "
        "Failed or suspended."
    ),
    Reason.PREEMPTED: (
        "Nothing: the next attempt resumes from the newest checkpoint. Mode onDemand has fewer of them; the mode may "
        "change while the run is suspended."
    ),
    Reason.HUB_UNAVAILABLE: "Check the network of the node pool; it is tried again by itself.",
    Reason.STORAGE_UNAVAILABLE: (
        "Check the bucket's region, quota and the network of the node pool; it is tried again by itself."
    ),
}
"""Remedies while an attempt is open or about to follow: accelerator, provisioning and pod are fixed until the run is
suspended or Failed, the data and the method for good."""

_SPEAKS_FOR_ITSELF = frozenset({Reason.HUB_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE})
"""Here the trainer knows better, and it names no field of the spec."""


def underway(cause: Cause) -> str:
    """The remedy of a cause that the run waits out or retries, once an attempt exists.

    Empty where there is nothing to be done.
    """
    if cause.ordinary:
        return ""
    if cause.said is not None and cause.said.remedy and cause.reason in _SPEAKS_FOR_ITSELF:
        return cause.said.remedy
    return _WHILE_OPEN.get(cause.reason, cause.remedy)


def final(cause: Cause, *, started: bool, again: str = TRY_AGAIN) -> str:
    """The remedy of a run that ends; `started`: an attempt exists, so most of the spec is fixed.

    `again`: how a person lets it go on (Settings.try_again).
    """
    own = cause.said.remedy if cause.said is not None else ""
    if own.startswith(OTHER_IMAGE):  # no setting of the run is wrong: the same run goes on with the right image
        return f"{own} Then {again}."
    if started and cause.reason in _FINAL:
        return f"{_NEW_RESOURCE}; there: {own}" if own else _FINAL[cause.reason]
    if started and cause.reason is Reason.ACCELERATOR_OUT_OF_MEMORY:
        return f"{_MOVE} Then {again}."
    remedy = own or _GIVEN_UP.get(cause.reason, cause.remedy)
    if again in remedy or cause.reason in _FINAL:
        return remedy  # before the first attempt a corrected spec starts anew by itself
    return f"{remedy} Then {again}.".strip()


def too_large(choices: Sequence[str], *, started: bool) -> str:
    """The remedy of a run that does not fit, by the planner's choices; `started`: some of them are fixed by now."""
    fixed = [choice for choice in choices if started and _is_fixed(choice)]
    free = [choice for choice in choices if choice not in fixed]
    if not choices:
        smaller = f"a smaller model in a new resource {_ANOTHER_OUTPUT}" if started else "a smaller model"
        return f"Use a larger accelerator, or {smaller}: no single change of the spec makes it fit."
    told = [f"One of: {'; '.join(free)}."] if free else []
    if fixed:
        told.append(
            f"{'Or c' if free else 'C'}reate a new resource {_ANOTHER_OUTPUT}, with one of: {'; '.join(fixed)}."
        )
    return " ".join(told)


def _is_fixed(choice: str) -> bool:
    return any(part.startswith(_FIXED_CHANGES) for part in choice.split(" and "))


_MORE_MEMORY = "Add CPU nodes with more memory: status.plan.merge tells what the merge needs."
_LARGER_DISKS = "Add CPU nodes with larger disks: status.plan.merge tells what the merge needs."
_OF_MERGE: dict[Reason, str] = {
    Reason.HOST_OUT_OF_MEMORY: _MORE_MEMORY,
    Reason.KILLED: _MORE_MEMORY,
    Reason.DISK_FULL: _LARGER_DISKS,
    Reason.UNSCHEDULABLE: "Add CPU nodes with the memory and disk of status.plan.merge.",
    Reason.CAPACITY_UNAVAILABLE: "Wait, or add a pool of other CPU nodes.",
}
"""A merge runs on CPU nodes, of which pod.resources, pod.nodeSelector, accelerator and provisioning do not speak."""


def merge_underway(cause: Cause) -> str:
    """The remedy of a cause that a merge waits out or retries; empty where there is nothing to be done."""
    if cause.ordinary:
        return ""
    if cause.answer is Answer.FREE:
        return "Nothing: the next merge begins anew."
    remedy = _OF_MERGE.get(cause.reason) or underway(cause)
    if cause.reason not in (Reason.HOST_OUT_OF_MEMORY, Reason.DISK_FULL):
        return remedy
    return f"Nothing at first: the next merge gets more, up to what the machine has. If that does not help: {remedy}"


def merge_failed(cause: Cause, again: str = TRY_AGAIN) -> str:
    """The remedy of a run whose merge failed; what the trainer itself says comes first."""
    own = cause.said.remedy if cause.said is not None else ""
    usual = "Raise limits.maxPreemptions." if cause.answer is Answer.FREE else cause.remedy
    if cause.answer is Answer.COUNTED:
        usual = _GIVEN_UP.get(cause.reason, cause.remedy)
    remedy = own or _OF_MERGE.get(cause.reason) or usual
    if cause.reason is Reason.OUTPUT_IN_USE:
        return _FINAL[cause.reason]
    return f"{remedy.partition(f'Then {again}')[0].strip()} Then {again}: only the merge is tried again.".strip()
