"""Attempts: recorded in the status first, then created as Jobs, watched, closed, and followed by the next."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

from gemmatune_api.base import duration_text
from gemmatune_api.names import ConditionType, Reason, Role, job_name
from gemmatune_api.status import Attempt
from gemmatune_operator import diagnose
from gemmatune_operator.conditions import has, parse_time, rfc3339
from gemmatune_operator.decision import Decision, Situation, fail
from gemmatune_operator.diagnose import Answer, Cause, cause
from gemmatune_operator.manifests import attempt as manifest
from gemmatune_operator.manifests.capacity import UNBOUNDED
from gemmatune_operator.observe import open_attempt, trained
from gemmatune_operator.policies import complete, cost, deadline, describe, provisioning, queue, remedies, retry
from gemmatune_operator.policies.accept import config_of, replanned
from gemmatune_operator.policies.cleanup import in_the_way, seconds_to_stuck, stuck
from gemmatune_operator.policies.close import closed, training_time
from gemmatune_operator.policies.outcome import GOES_ON, STOPPED, Outcome
from gemmatune_operator.policies.prepare import (
    PENDING_LOOK_SECONDS,
    YOUNG_LOOK_SECONDS,
    access_objects,
    look_seconds,
    refused,
)
from gemmatune_operator.policies.stall import stall
from gemmatune_operator.views import JobView

KEPT = 20
"""Attempts that the status shows; counters know of all."""

_NO_PLAN = (
    "status.plan is gone, and what the model needs is not known without it.",
    "Create a new resource with another output.uri.",
)


def attempt(situation: Situation, decision: Decision) -> Decision:
    """Moves the open attempt on; without one, records the next, until one has left the adapter."""
    if trained(decision.status):
        return decision
    current = open_attempt(decision.status)
    if current is None:
        return _start(situation, _recorded(situation, decision))
    job = situation.observed.jobs.get(current.job)
    if job is None and current.start_time is None:
        return _start(situation, decision)
    if current.reason in STOPPED:
        return _stopping(situation, decision, current, job)
    if job is None:
        return _closed(situation, decision, current, None, diagnose.vanished(current.job))
    decision, current = _seen(situation, decision, current, job)
    outcome = _outcome(situation, decision, current, job)
    if outcome.cause is not None and outcome.gently:
        return _stopped(situation, decision, current, outcome.cause)
    if outcome.cause is not None:
        return _closed(situation, decision, current, job, outcome.cause)
    if outcome.wake is not None:
        decision = decision.waking(outcome.wake)
    if queue.held(job):
        return _queued(situation, decision, current, job)
    sign = diagnose.ending(job)
    return _ending(situation, decision, current, sign) if sign else _watch(situation, decision, current, job)


def _recorded(situation: Situation, decision: Decision) -> Decision:
    """The next attempt, recorded: from here the spec is fixed, and its Job may write the trainer's fields."""
    if (ended := _over(situation, decision)) is not None:
        return ended
    decision = replanned(situation, decision)
    if decision.settled:
        return decision
    last = decision.status.attempts[-1] if decision.status.attempts else None
    number = decision.counters.attempts + 1
    checkpoint = decision.status.checkpoint
    new = Attempt(
        number=number,
        job=job_name(situation.observed.name, Role.TRAIN, number),
        provisioning=provisioning.mode(situation, decision),
        from_step=checkpoint.step if checkpoint else None,
        overrides=retry.carried(decision, last),
    )
    if not has(decision.status.conditions, ConditionType.TRAINING, "False", Reason.RETRYING):
        message = f"Attempt {number} is about to start."
        decision = decision.condition(situation, ConditionType.PROVISIONED, False, Reason.PROVISIONING, message)
        if decision.status.attempts:
            decision = decision.condition(situation, ConditionType.TRAINING, False, Reason.PROVISIONING, message)
    return decision.update(
        attempts=[*decision.status.attempts, new][-KEPT:],
        counters=decision.counters.model_copy(update={"attempts": number}),
        job=new.job,
    )


def _start(situation: Situation, decision: Decision) -> Decision:
    """Creates the recorded attempt's Job once its time has come and no earlier one can still run."""
    current = open_attempt(decision.status)
    if current is None:
        return decision  # a broken spec was not recorded
    if (ended := _over(situation, decision)) is not None:
        return ended
    decision = replanned(situation, decision)  # the spec may have changed since the attempt was recorded
    if decision.settled or (plan := decision.status.plan) is None:
        return decision if decision.settled else fail(situation, decision, Reason.INVALID_SPEC, *_NO_PLAN)
    if situation.observed.refusal is not None:
        return refused(situation, decision, ConditionType.PROVISIONED)
    pause = retry.pause(situation, decision)
    if pause > 0:
        return decision.waking(pause).settle()
    if in_the_way(situation, keep=current.job):
        return decision.waking(seconds_to_stuck(situation) or PENDING_LOOK_SECONDS).settle()
    checkpoint = decision.status.checkpoint
    changes = {
        "provisioning": provisioning.mode(situation, decision),
        "from_step": checkpoint.step if checkpoint else None,  # the one before may have saved one at its very end
        "overrides": retry.carried(decision, current),
    }
    current = current.model_copy(update=changes)
    current = current.model_copy(update={"cost_per_hour": cost.rate(situation, decision, current)})
    decision = decision.update(attempts=[*decision.status.attempts[:-1], current], next_attempt_time=None)
    config = config_of(situation, current.number, plan, current.overrides)
    timers = decision.timers.model_dump(by_alias=True, exclude_none=True)
    resource = situation.run.model_copy(update={"status": {"timers": timers}})
    objects = manifest.objects(resource, config, plan, current, situation.settings)
    return decision.creating(*access_objects(situation), *objects).waking(YOUNG_LOOK_SECONDS).settle()


def _over(situation: Situation, decision: Decision) -> Decision | None:
    """The end of the run where no further attempt may start: the spec is broken, or a limit is used up."""
    if situation.problems:
        return fail(situation, decision, *describe.problems(situation.problems))
    limit = deadline.used_up(situation, decision) or cost.used_up(situation, decision)
    return fail(situation, decision, limit.reason, limit.message, limit.remedy) if limit is not None else None


def _seen(situation: Situation, decision: Decision, current: Attempt, job: JobView) -> tuple[Decision, Attempt]:
    """Notes when the Job was first seen, and when its pods first ran."""
    timers = decision.timers
    if current.start_time is None:
        start = rfc3339(job.created or situation.now)
        current = current.model_copy(update={"start_time": start})
    if current.training_time is None:
        since = queue.pending_since(job)
        timers = timers.model_copy(update={"pending_since": rfc3339(since) if since is not None else None})
    if current.training_time is None and job.running:
        began = training_time(current, job) or situation.now
        current = current.model_copy(update={"training_time": rfc3339(began)})
        timers = timers.model_copy(update={"pending_since": None})
    attempts = [*decision.status.attempts[:-1], current]
    return decision.update(attempts=attempts, timers=timers, next_attempt_time=None), current


def _outcome(situation: Situation, decision: Decision, current: Attempt, job: JobView) -> Outcome:
    """Why the attempt ends now; otherwise when to look again."""
    ending = diagnose.ended(job)
    evicted = queue.evicted(current, job)
    if evicted is not None and (ending is None or ending.reason is Reason.INTERRUPTED):
        step = ending.step if ending is not None else None
        return Outcome(dataclasses.replace(evicted, step=step), gently=ending is None)
    if ending is not None:
        ending = deadline.backstop(situation, decision, current, job, _remembered(current, ending))
        return Outcome(complete.verified(decision, ending))
    if stuck(situation, job):
        return Outcome(diagnose.lost(next(pod for pod in job.pods if not pod.ended)))
    if job.deleting:
        return Outcome(wake=seconds_to_stuck(situation) or PENDING_LOOK_SECONDS)
    found = [
        deadline.training(situation, decision, current, job),
        cost.training(situation, decision, current),
        stall(situation, decision, current, job),
        GOES_ON if current.training_time else provisioning.no_spot_node(situation, decision, current, job),
        GOES_ON
        if current.provisioning in UNBOUNDED
        else deadline.pending(situation, job, parse_time(decision.timers.pending_since)),
    ]
    ended = next((outcome for outcome in found if outcome.cause is not None), None)
    wakes = [outcome.wake for outcome in found if outcome.wake is not None]
    wakes += [wake] if (wake := seconds_to_stuck(situation)) is not None else []
    return ended or Outcome(wake=min(wakes) if wakes else None)


def _stopped(situation: Situation, decision: Decision, current: Attempt, why: Cause) -> Decision:
    """Asks the trainer to stop: the reason of the open attempt says so, and cleanup deletes its Job."""
    reason = {"reason": why.reason.value, "message": why.message, "remedy": why.remedy}
    decision = decision.update(attempts=[*decision.status.attempts[:-1], current.model_copy(update=reason)])
    message = f"{why.sentence} The trainer saves a checkpoint and stops."
    return decision.condition(situation, ConditionType.TRAINING, True, why.reason, message, why.remedy).settle()


def _stopping(situation: Situation, decision: Decision, current: Attempt, job: JobView | None) -> Decision:
    """Closes an attempt that was asked to stop once its Job is gone; a trainer that was about to succeed still does."""
    asked = cause(Reason(current.reason), current.message, current.remedy)
    ending = diagnose.ended(job) if job is not None else None
    if (done := complete.completion(decision, job)) is not None:
        return _closed(situation, decision, current, job, done)
    if job is not None and not (job.finished or stuck(situation, job)):
        return decision.waking(seconds_to_stuck(situation) or PENDING_LOOK_SECONDS).settle()
    saved = decision.status.checkpoint
    message = f"{asked.sentence} The checkpoint of step {saved.step} is saved." if saved is not None else asked.message
    step = ending.step if ending is not None else None
    ended = dataclasses.replace(asked, message=message, step=step, pod=ending.pod if ending is not None else None)
    return _closed(situation, decision, current, job, ended)


def _ending(situation: Situation, decision: Decision, current: Attempt, why: Cause) -> Decision:
    """The attempt is about to end: said at once, though its pod may take minutes.

    The open attempt keeps the reason: the pod may be gone by the time that its Job fails.
    """
    message = f"Attempt {current.number} is ending with {why.reason}: {why.sentence} The next follows when it is gone."
    remedy = remedies.underway(why)
    decision = decision.condition(situation, ConditionType.TRAINING, False, Reason.RETRYING, message, remedy)
    decision = decision.condition(situation, ConditionType.PROVISIONED, False, Reason.RETRYING, message, remedy)
    current = current.model_copy(update={"reason": why.reason.value, "message": why.message})
    return decision.update(attempts=[*decision.status.attempts[:-1], current]).settle()


def _remembered(current: Attempt, why: Cause) -> Cause:
    """The cause that was seen while the pod was there, where the pod is gone now and its Job tells less."""
    known = [reason for reason in (Reason.PREEMPTED, Reason.NODE_LOST) if reason.value == current.reason]
    vague = why.pod is None and why.reason in (Reason.PREEMPTED, Reason.POD_LOST)
    return cause(known[0], current.message) if known and vague else why


def _watch(situation: Situation, decision: Decision, current: Attempt, job: JobView) -> Decision:
    """The attempt goes on: say whether it trains or what it waits for."""
    if current.reason:  # what was to end it did not
        current = current.model_copy(update={"reason": "", "message": ""})
        decision = decision.update(attempts=[*decision.status.attempts[:-1], current])
    if job.running:
        message = f"Attempt {current.number} trains on {_nodes(job)} ({current.provisioning})."
        decision = decision.condition(situation, ConditionType.PROVISIONED, True, Reason.RUNNING, message)
        return decision.condition(situation, ConditionType.TRAINING, True, Reason.RUNNING, message).settle()
    if current.training_time is not None:
        return decision.settle()  # its pod ended or is being deleted; the Job will say how
    why = diagnose.waiting(job)
    starting = has(decision.status.conditions, ConditionType.PROVISIONED, "False", Reason.PROVISIONING)
    if not (why.ordinary and starting):  # an ordinary start changes nothing
        remedy = remedies.underway(why)
        decision = decision.condition(situation, ConditionType.PROVISIONED, False, why.reason, why.message, remedy)
    if current.number > 1:
        message = f"Attempt {current.number} waits for its node."
        decision = decision.condition(situation, ConditionType.TRAINING, False, Reason.PROVISIONING, message)
    return decision.waking(look_seconds(situation, job)).settle()


def _queued(situation: Situation, decision: Decision, current: Attempt, job: JobView) -> Decision:
    """The attempt's Job is held back: its wait for nodes has not begun."""
    if current.number > 1:
        message = f"Attempt {current.number} waits for its admission."
        decision = decision.condition(situation, ConditionType.TRAINING, False, Reason.QUEUED, message)
    return queue.waits(situation, decision, ConditionType.PROVISIONED, job)


def _nodes(job: JobView) -> str:
    nodes = sorted({pod.node for pod in job.pods if pod.node})
    return ", ".join(nodes) or "its node"


def _closed(situation: Situation, decision: Decision, current: Attempt, job: JobView | None, why: Cause) -> Decision:
    """Closes the attempt; the same decision records the next one, or ends the run."""
    if why.answer is Answer.SUCCEED:
        return complete.succeeded(situation, closed(situation, decision, current, job, why, counted=False), why.said)
    verdict = retry.verdict(situation, decision, current, job, why)
    again = situation.settings.try_again
    remedy = remedies.underway(why) if verdict.again else remedies.final(why, started=True, again=again)
    used = retry.budget(situation, verdict.counters, decision.budget_base)
    told = dataclasses.replace(why, message=_with(used, why, why.message), remedy=remedy)
    decision = closed(situation, decision, current, job, told, counted=verdict.counted)
    decision = decision.update(counters=verdict.counters)
    if not verdict.again:
        return fail(situation, decision, why.reason, _with(used, why, verdict.message), remedy)
    return _followed(situation, decision, current, told, verdict)


def _with(budget: str, why: Cause, message: str) -> str:
    """A message and the budgets, where the cause has one."""
    return message if why.answer is Answer.FAIL else f"{message.rstrip().removesuffix('.')} ({budget})."


def _followed(
    situation: Situation, decision: Decision, current: Attempt, why: Cause, verdict: retry.Verdict
) -> Decision:
    """The next attempt, recorded in the same write that closes the last."""
    follows = f"in {duration_text(verdict.delay)}" if verdict.delay else "at once"
    message = f"Attempt {current.number} ended with {why.reason}: {why.sentence} The next follows {follows}."
    decision = decision.condition(situation, ConditionType.TRAINING, False, Reason.RETRYING, message, why.remedy)
    decision = decision.condition(situation, ConditionType.PROVISIONED, False, Reason.RETRYING, message)
    due = rfc3339(situation.now + timedelta(seconds=verdict.delay)) if verdict.delay else None
    decision = _recorded(situation, decision.update(next_attempt_time=due))
    if not decision.settled:
        last = decision.status.attempts[-1].model_copy(update={"overrides": verdict.overrides})
        decision = decision.update(attempts=[*decision.status.attempts[:-1], last])
    return _start(situation, decision)
