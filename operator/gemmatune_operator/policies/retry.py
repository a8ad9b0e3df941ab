"""What follows the end of an attempt: another one with what it changes, or the end of the run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from gemmatune_api import accelerators
from gemmatune_api.layout import layout
from gemmatune_api.names import ConditionType, Reason, Role, job_name
from gemmatune_api.status import Attempt, BudgetBase, Counters, JobRecord, Overrides
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import FREE_ON_SPOT, Answer, Cause
from gemmatune_operator.policies import provisioning
from gemmatune_operator.policies.provisioning import SPOT
from gemmatune_operator.views import JobView, Machine

DOWNSHIFTS = 3
GROWTH = 1.5
MACHINE_SHARE = 0.9
"""Share of a node's allocatable memory or disk that a pod may grow to; its daemons need the rest."""
BACKOFF_SECONDS, BACKOFF_CAP_SECONDS, JITTER = 10.0, 300.0, 0.2
BACKS_OFF = frozenset({Reason.STORAGE_UNAVAILABLE, Reason.HUB_UNAVAILABLE, Reason.CRASHED, Reason.POD_REJECTED})


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
    used = decision.counters
    if cause.reason is Reason.CAPACITY_UNAVAILABLE:  # no spot node: the fallback is no preemption
        used = used.model_copy(update={"capacity_fallbacks": provisioning.waits_in_vain(decision) + 1})
        return Verdict(True, False, used, carried(decision, attempt))
    if answer is Answer.FREE:
        return _free(situation, decision, attempt, cause)
    if answer is Answer.DOWNSHIFT:
        return _downshift(decision, attempt, cause)
    if answer is Answer.COUNTED:
        return _counted(situation, decision, attempt, job, cause)
    return Verdict(False, False, used, message=cause.message)


def _free(situation: Situation, decision: Decision, attempt: Attempt, cause: Cause) -> Verdict:
    used, base = decision.counters, decision.budget_base.preemptions
    limit = situation.limits.max_preemptions or 0
    if used.preemptions - base >= limit:
        message = f"{cause.sentence} limits.maxPreemptions ({limit}) is used up."
        return Verdict(False, False, used, message=message)
    counters = used.model_copy(update={"preemptions": used.preemptions + 1})
    if cause.reason is Reason.EVICTED_BY_QUEUE:
        counters = counters.model_copy(update={"queue_evictions": provisioning.evictions(decision) + 1})
    delay = backoff(situation.observed.uid, used.attempts, in_a_row(decision, cause)) if _backs_off(cause) else 0.0
    return Verdict(True, False, counters, carried(decision, attempt), delay)


def _counted(situation: Situation, decision: Decision, attempt: Attempt, job: JobView | None, cause: Cause) -> Verdict:
    used, base = decision.counters, decision.budget_base.retries
    limit = situation.limits.max_retries or 0
    stalls = used.stalls + (cause.reason is Reason.STALLED)
    if used.retries - base >= limit:
        message = f"{cause.sentence} limits.maxRetries ({limit}) is used up."
        return Verdict(False, False, used.model_copy(update={"stalls": stalls}), message=message)
    counters = used.model_copy(update={"retries": used.retries + 1, "stalls": stalls})
    delay = backoff(situation.observed.uid, used.attempts, used.retries - base) if _backs_off(cause) else 0.0
    overrides = carried(decision, attempt)
    if not _outdated(decision, attempt):  # else it ran out of what another machine had
        overrides = grown(overrides, situation, job, cause, _largest(situation))
    return Verdict(True, True, counters, overrides, delay)


def _downshift(decision: Decision, attempt: Attempt, cause: Cause) -> Verdict:
    used, base = decision.counters, decision.budget_base.out_of_memory
    done = used.out_of_memory - base
    filled = cause.said.sequences if cause.said is not None else None
    last = done == DOWNSHIFTS - 1
    smaller = smaller_batch(decision, attempt, last=last, filled=filled) if done < DOWNSHIFTS else None
    if smaller is None:
        message = f"{cause.sentence} Micro-batch and gradient checkpointing leave nothing more to lower."
        return Verdict(False, False, used, message=message)
    counters = used.model_copy(update={"out_of_memory": used.out_of_memory + 1})
    return Verdict(True, False, counters, smaller)


def smaller_batch(decision: Decision, attempt: Attempt, *, last: bool, filled: int | None = None) -> Overrides | None:
    """The attempt's overrides with half the micro-batch, or with checkpointing on; None: neither is left.

    The last downshift does both. `filled`: the sequences that a pass really had, where the trainer tells. Packed rows
    fill fewer than the micro-batch allows, and a micro-batch that is still above them is the same program again.
    """
    plan = decision.status.plan
    if plan is None:
        return None
    old = carried(decision, attempt) or Overrides()
    micro = old.micro_batch_size or plan.micro_batch_size
    if filled is not None and filled > 0:
        micro = min(micro, filled)
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
    """What an attempt hands on to the next; downshifts hold for the plan, grants for the machine they were made for."""
    old = attempt.overrides if attempt is not None else None
    if attempt is not None and _outdated(decision, attempt):
        old = without_grants(old)
    if old is not None and decision.counters.out_of_memory <= decision.budget_base.out_of_memory:
        old = old.model_copy(update={"micro_batch_size": None, "gradient_checkpointing": None})
    return old if old is not None and old != Overrides() else None


def without_grants(overrides: Overrides | None) -> Overrides | None:
    """Without the memory and disk that failures have raised."""
    kept = (overrides or Overrides()).model_copy(update={"memory": None, "ephemeral_storage": None})
    return kept if kept != Overrides() else None


def _outdated(decision: Decision, attempt: Attempt) -> bool:
    """Whether another machine, or other resources, have been asked for since the attempt began."""
    return attempt.number <= (decision.budget_base.attempts or 0)


def _largest(situation: Situation) -> int:
    """Memory that the largest machine with the attempt's accelerators gives to pods; 0 where no catalog has one."""
    wanted, count = situation.spec.accelerator, layout(situation.spec).per_host
    gpu = accelerators.gpu(wanted.gpu.type) if wanted.gpu else None
    tpu = accelerators.tpu(wanted.tpu.type) if wanted.tpu else None
    machines = gpu.machines if gpu else tpu.machines if tpu else ()
    return max((item.allocatable_memory for item in machines if item.accelerators == count), default=0)


def grown(
    overrides: Overrides | None, situation: Situation, job: JobView | None, cause: Cause, largest: int = 0
) -> Overrides | None:
    """With more memory after HostOutOfMemory, more disk after DiskFull: half as much again, up to the machine's.

    A node that cannot be read any more is taken for one with `largest` bytes of memory; disks are in no catalog.
    """
    if job is None or cause.reason not in (Reason.HOST_OUT_OF_MEMORY, Reason.DISK_FULL):
        return overrides
    machine = situation.observed.machines.get(cause.pod.node if cause.pod else "", Machine())
    old = overrides or Overrides()
    if cause.reason is Reason.HOST_OUT_OF_MEMORY:
        return old.model_copy(update={"memory": _more(job.memory, machine.memory or largest) or old.memory})
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


def in_a_row(decision: Decision, cause: Cause) -> int:
    """How many attempts before the last one ended by the same cause without another in between.

    Twenty preemptions are no reason to let the first refused pod wait for minutes.
    """
    earlier = [attempt.reason for attempt in decision.status.attempts if attempt.end_time is not None]
    return sum(1 for _ in takewhile(lambda reason: reason == cause.reason, reversed(earlier)))


def budget(situation: Situation, counters: Counters, base: BudgetBase) -> str:
    """What is used of each budget since the last retry on demand: `retry 1 of 3, preemptions 2 of 20`."""
    limits = situation.limits
    used = [
        f"retry {counters.retries - base.retries} of {limits.max_retries or 0}",
        f"preemptions {counters.preemptions - base.preemptions} of {limits.max_preemptions or 0}",
    ]
    if counters.out_of_memory > base.out_of_memory:
        used.append(f"downshifts {counters.out_of_memory - base.out_of_memory} of {DOWNSHIFTS}")
    return ", ".join(used)


def backoff(uid: str, attempt: int, failures: int) -> float:
    """Seconds before the next attempt: doubling, capped, and spread by up to 20% by UID and attempt number."""
    spread = int.from_bytes(hashlib.sha256(f"{uid}/{attempt}".encode()).digest()[:4], "big") / 2**32
    delay = BACKOFF_SECONDS * 2.0 ** min(failures, 16)
    return min(BACKOFF_CAP_SECONDS, delay) * (1 - JITTER + 2 * JITTER * spread)


def pause(situation: Situation, decision: Decision) -> float:
    """Seconds until the next Job may start; 0 where its time has come.

    A time further away than the longest pause was written while a clock was wrong, and counts as come.
    """
    due = parse_time(decision.status.next_attempt_time)
    rest = (due - situation.now).total_seconds() if due is not None else 0.0
    return rest if 0 < rest <= BACKOFF_CAP_SECONDS * (1 + JITTER) else 0.0


def merge_again(situation: Situation, decision: Decision, old: JobRecord) -> Decision:
    """The next merge recorded, as a Job of its own number that may write the trainer's fields."""
    number = old.number + 1
    job = job_name(situation.observed.name, Role.MERGE, number)
    record = old.model_copy(update={"number": number, "job": job, "start_time": None})
    message = f"Merge {number} is about to start."
    decision = decision.condition(situation, ConditionType.SUCCEEDED, False, Reason.MERGING, message)
    waits = f"Merge {number} waits for its node."
    decision = decision.condition(situation, ConditionType.PROVISIONED, False, Reason.PROVISIONING, waits)
    return decision.update(merge=record, job=job, next_attempt_time=None)


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
    used, prepare, merge = decision.counters, decision.status.prepare, decision.status.merge
    if prepare is not None and not decision.status.attempts:
        prepare = prepare.model_copy(update={"generation": None})
    if merge is not None:
        decision = merge_again(situation, decision, merge.model_copy(update={"retries": 0, "preemptions": 0}))
    budgets = {"retries": used.retries, "preemptions": used.preemptions, "out_of_memory": used.out_of_memory}
    decision = provisioning.renewed(decision)
    return decision.update(
        observed_retry=observed.retry,
        observed_generation=None,  # everything is looked at anew
        budget_base=decision.budget_base.model_copy(update=budgets),
        prepare=prepare,
    )
