"""What follows the end of an attempt: another one with what it changes, or the end of the run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from gemmatune_api.names import ANNOTATION_RETRY, ConditionType, Reason
from gemmatune_api.status import Attempt, BudgetBase, Counters, Overrides
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import FREE_ON_SPOT, Answer, Cause
from gemmatune_operator.policies.provisioning import SPOT
from gemmatune_operator.views import JobView, Machine

DOWNSHIFTS = 3
GROWTH = 1.5
MACHINE_SHARE = 0.9
"""Share of a node's allocatable memory or disk that a pod may grow to; its daemons need the rest."""
BACKOFF_SECONDS, BACKOFF_CAP_SECONDS, JITTER = 10.0, 300.0, 0.2
BACKS_OFF = frozenset({Reason.STORAGE_UNAVAILABLE, Reason.HUB_UNAVAILABLE, Reason.CRASHED, Reason.POD_REJECTED})

_NEW_RESOURCE = "Create a new resource with another output.uri, and correct there what the message names."
_MOVE = (
    "Pick a larger accelerator (it may change while the run is Failed), or create a new resource with another "
    "output.uri and a lower dataset.maxLength."
)
_AFTER_START: dict[Reason, str] = {
    Reason.INVALID_CONFIG: _NEW_RESOURCE,
    Reason.DATA_INVALID: _NEW_RESOURCE,
    Reason.LOSS_DIVERGED: "Create a new resource with a lower training.learningRate and another output.uri.",
    Reason.OUTPUT_IN_USE: "Create a new resource with another output.uri.",
    Reason.ACCELERATOR_OUT_OF_MEMORY: _MOVE,
}
"""Remedies once an attempt exists: they name only fields that may still change."""
_OTHER_NODES = "Raise limits.maxPreemptions, or set provisioning.mode: onDemand."
_GIVEN_UP: dict[Reason, str] = {
    Reason.PREEMPTED: _OTHER_NODES,
    Reason.NODE_LOST: _OTHER_NODES,
    Reason.POD_REJECTED: _OTHER_NODES,
    Reason.INTERRUPTED: _OTHER_NODES,
    Reason.KILLED: "Raise pod.resources.limits.memory: most often the node itself ran out of memory.",
    Reason.JOB_VANISHED: "Find out who deletes the Jobs of this run.",
    Reason.POD_LOST: "Look at the events of the node that ran the pod.",
    Reason.RESULT_MISSING: "Read the pod's log: the trainer ended without naming a manifest.",
}
"""Remedies of causes that are retried by themselves, once the retries are used up."""
_FINAL = frozenset({Reason.INVALID_CONFIG, Reason.DATA_INVALID, Reason.LOSS_DIVERGED, Reason.OUTPUT_IN_USE})
_RETRY = f"Then set the annotation {ANNOTATION_RETRY} to a new value."


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows an attempt."""

    again: bool
    counted: bool
    counters: Counters
    overrides: Overrides | None = None
    """What the next attempt changes against the plan."""
    delay: float = 0.0
    """Seconds until it may start."""
    message: str = ""
    """Why there is none."""


def verdict(situation: Situation, decision: Decision, attempt: Attempt, job: JobView | None, cause: Cause) -> Verdict:
    """What follows an attempt that ended by this cause."""
    answer = cause.answer
    if attempt.provisioning == SPOT and cause.reason in FREE_ON_SPOT:
        answer = Answer.FREE
    limits = situation.limits
    used, base = decision.counters, decision.budget_base
    if cause.reason is Reason.CAPACITY_UNAVAILABLE:  # no spot node: the fallback is no preemption
        return Verdict(True, False, used, carried(decision, attempt))
    if answer is Answer.FREE:
        return _free(used, base.preemptions, limits.max_preemptions or 0, carried(decision, attempt), situation, cause)
    if answer is Answer.DOWNSHIFT:
        return _downshift(decision, attempt, cause)
    if answer is Answer.COUNTED:
        return _counted(situation, decision, attempt, job, cause)
    return Verdict(False, False, used, message=cause.message)


def _free(
    used: Counters, base: int, limit: int, overrides: Overrides | None, situation: Situation, cause: Cause
) -> Verdict:
    if used.preemptions - base >= limit:
        message = f"{cause.sentence} limits.maxPreemptions ({limit}) is used up."
        return Verdict(False, False, used, message=message)
    counters = used.model_copy(update={"preemptions": used.preemptions + 1})
    delay = backoff(situation.observed.uid, used.attempts, used.preemptions - base) if _backs_off(cause) else 0.0
    return Verdict(True, False, counters, overrides, delay)


def _counted(situation: Situation, decision: Decision, attempt: Attempt, job: JobView | None, cause: Cause) -> Verdict:
    used, base = decision.counters, decision.budget_base.retries
    limit = situation.limits.max_retries or 0
    stalls = used.stalls + (cause.reason is Reason.STALLED)
    if used.retries - base >= limit:
        message = f"{cause.sentence} limits.maxRetries ({limit}) is used up."
        return Verdict(False, False, used.model_copy(update={"stalls": stalls}), message=message)
    counters = used.model_copy(update={"retries": used.retries + 1, "stalls": stalls})
    delay = backoff(situation.observed.uid, used.attempts, used.retries - base) if _backs_off(cause) else 0.0
    overrides = grown(carried(decision, attempt), situation, job, cause)
    return Verdict(True, True, counters, overrides, delay)


def _downshift(decision: Decision, attempt: Attempt, cause: Cause) -> Verdict:
    used, base = decision.counters, decision.budget_base.out_of_memory
    done = used.out_of_memory - base
    smaller = smaller_batch(decision, attempt, last=done == DOWNSHIFTS - 1) if done < DOWNSHIFTS else None
    if smaller is None:
        message = f"{cause.sentence} Micro-batch and gradient checkpointing leave nothing more to lower."
        return Verdict(False, False, used, message=message)
    counters = used.model_copy(update={"out_of_memory": used.out_of_memory + 1})
    return Verdict(True, False, counters, smaller)


def smaller_batch(decision: Decision, attempt: Attempt, *, last: bool) -> Overrides | None:
    """The attempt's overrides with half the micro-batch, or with checkpointing on; None: neither is left.

    The last downshift does both.
    """
    plan = decision.status.plan
    if plan is None:
        return None
    old = carried(decision, attempt) or Overrides()
    micro = old.micro_batch_size or plan.micro_batch_size
    on = plan.gradient_checkpointing if old.gradient_checkpointing is None else old.gradient_checkpointing
    if micro <= 1 and on:
        return None
    changes: dict[str, Any] = {}
    if micro > 1:
        changes["micro_batch_size"] = _halved(micro, plan.micro_batch_size * plan.accumulation)
    if not on and (micro <= 1 or last):
        changes["gradient_checkpointing"] = True
    return old.model_copy(update=changes)


def _halved(micro: int, rows: int) -> int:
    """The largest divisor of the step's rows that is at most half the micro-batch."""
    return next(size for size in range(micro // 2, 0, -1) if rows % size == 0)


def carried(decision: Decision, attempt: Attempt | None) -> Overrides | None:
    """What an attempt hands on to the next; downshifts hold for the plan that they were made for."""
    old = attempt.overrides if attempt is not None else None
    if old is not None and decision.counters.out_of_memory <= decision.budget_base.out_of_memory:
        old = old.model_copy(update={"micro_batch_size": None, "gradient_checkpointing": None})
    return old if old is not None and old != Overrides() else None


def grown(overrides: Overrides | None, situation: Situation, job: JobView | None, cause: Cause) -> Overrides | None:
    """With more memory after HostOutOfMemory, more disk after DiskFull: half as much again, up to the machine's."""
    if job is None or cause.reason not in (Reason.HOST_OUT_OF_MEMORY, Reason.DISK_FULL):
        return overrides
    machine = situation.observed.machines.get(cause.pod.node if cause.pod else "", Machine())
    old = overrides or Overrides()
    if cause.reason is Reason.HOST_OUT_OF_MEMORY:
        return old.model_copy(update={"memory": _more(job.memory, machine.memory) or old.memory})
    more = _more(job.ephemeral_storage, machine.ephemeral_storage)
    return old.model_copy(update={"ephemeral_storage": more or old.ephemeral_storage})


def _more(limit: int, machine: int) -> int | None:
    """A larger limit in bytes; None where there is no limit, or the machine has no more."""
    size = int(limit * GROWTH)
    if machine:
        size = min(size, int(machine * MACHINE_SHARE))
    return size if size > limit > 0 else None


def _backs_off(cause: Cause) -> bool:
    return cause.reason in BACKS_OFF


def backoff(uid: str, attempt: int, failures: int) -> float:
    """Seconds before the next attempt: doubling, capped, and spread by up to 20% by UID and attempt number."""
    spread = int.from_bytes(hashlib.sha256(f"{uid}/{attempt}".encode()).digest()[:4], "big") / 2**32
    delay = BACKOFF_SECONDS * 2.0 ** min(failures, 16)
    return min(BACKOFF_CAP_SECONDS, delay) * (1 - JITTER + 2 * JITTER * spread)


def final_remedy(cause: Cause, *, started: bool) -> str:
    """The remedy of a run that ends; `started`: an attempt exists, so most of the spec is fixed."""
    own = cause.said.remedy if cause.said is not None else ""
    usual = _GIVEN_UP.get(cause.reason, cause.remedy)
    remedy = own or (_AFTER_START.get(cause.reason) if started else None) or usual
    if ANNOTATION_RETRY in remedy or cause.reason in _FINAL:
        return remedy  # before the first attempt a corrected spec starts anew by itself; later nothing helps
    return f"{remedy} {_RETRY}".strip()


def on_demand(situation: Situation, decision: Decision) -> Decision:
    """A Failed run goes on: by a new value of the retry annotation, or by a corrected spec.

    A correction counts before the first attempt, and where the spec itself was the fault.
    """
    if decision.true(ConditionType.SUCCEEDED):
        return decision.settle()
    if not decision.true(ConditionType.FAILED):
        return decision
    observed = situation.observed
    asked = observed.retry is not None and observed.retry != decision.status.observed_retry
    correctable = not decision.status.attempts or not decision.true(ConditionType.ACCEPTED)
    corrected = correctable and decision.status.observed_generation != observed.generation
    if not (asked or corrected):
        return decision.settle()
    message = "Tried again by annotation." if asked else "The spec was corrected."
    decision = decision.condition(situation, ConditionType.FAILED, False, Reason.RETRYING, message)
    decision = decision.condition(situation, ConditionType.FINISHED, False, Reason.RETRYING, message)
    used, prepare = decision.counters, decision.status.prepare
    if prepare is not None and not decision.status.attempts:
        prepare = prepare.model_copy(update={"generation": None})
    base = BudgetBase(retries=used.retries, preemptions=used.preemptions, out_of_memory=used.out_of_memory)
    return decision.update(
        observed_retry=observed.retry,
        observed_generation=None,  # everything is looked at anew
        budget_base=base,
        prepare=prepare,
    )
