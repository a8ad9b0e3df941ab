"""Preparation on a cheap node: its Job, its retries, and what it found; it starts anew when the spec is corrected."""

from __future__ import annotations

from datetime import timedelta

from gemmatune_api.base import duration_text
from gemmatune_api.names import ConditionType, Reason, Role, job_name
from gemmatune_api.status import DataStatus, JobRecord
from gemmatune_operator import diagnose
from gemmatune_operator.conditions import has, rfc3339
from gemmatune_operator.decision import Decision, Situation, fail
from gemmatune_operator.diagnose import Answer, Cause, cause
from gemmatune_operator.manifests import access
from gemmatune_operator.manifests import prepare as manifest
from gemmatune_operator.policies import deadline, describe, queue, remedies, results, retry
from gemmatune_operator.policies.accept import config_of, model_of, planned
from gemmatune_operator.policies.cleanup import end_of, in_the_way, seconds_to_stuck
from gemmatune_operator.views import JobView

RETRIES = 3
PENDING_LOOK_SECONDS = 300.0
"""Between two looks at Jobs and pods that do not run. Their changes, and the Events that tell what no status does, wake
the operator; a look is for the ordinary Events, such as that a node is being made."""
YOUNG_LOOK_SECONDS = 30.0
YOUNG_SECONDS = 120.0
"""How long a Job is looked at more often: in these minutes the autoscaler says what it does."""
ASKED_SECONDS = 15.0
"""After so long a kubelet has asked for a pod's readiness."""
REFUSED_SECONDS = 10.0
"""Until a Job that could not be created is tried again."""


def prepare(situation: Situation, decision: Decision) -> Decision:
    """Sets Prepared; settles while the preparation runs."""
    status, generation = decision.status, situation.observed.generation
    if status.attempts:
        return decision
    record = status.prepare
    if record is None or record.generation != generation:
        decision, record = _begun(situation, decision, record)
    elif decision.true(ConditionType.PREPARED):
        return decision
    job = situation.observed.jobs.get(record.job)
    if job is None:
        return _create(situation, decision, record)
    if job.deleting:
        return decision.settle()
    ending = end_of(situation, job)
    if ending is not None:
        return _ended(situation, decision, record, job, ending)
    sign = diagnose.ending(job)
    return _ending(situation, decision, record, sign) if sign else _watch(situation, decision, record, job)


def _begun(situation: Situation, decision: Decision, old: JobRecord | None) -> tuple[Decision, JobRecord]:
    """The next preparation, recorded; a Job of its name that was made for another spec costs it the number."""
    number = old.number + 1 if old else 1
    while _outdated(situation, job := job_name(situation.observed.name, Role.PREPARE, number)):
        number += 1
    record = JobRecord(number=number, job=job, generation=situation.observed.generation)
    decision = decision.condition(situation, ConditionType.PREPARED, False, Reason.PREPARING, _checks(number))
    return decision.update(prepare=record, next_attempt_time=None, data=None), record


def _outdated(situation: Situation, name: str) -> bool:
    job = situation.observed.jobs.get(name)
    return job is not None and job.generation != situation.observed.generation


def _checks(number: int) -> str:
    return f"Preparation {number} checks access and data on a CPU node."


def _create(situation: Situation, decision: Decision, record: JobRecord) -> Decision:
    """Creates the Job once its time has come and no earlier one can still run."""
    if situation.observed.refusal is not None:
        return refused(situation, decision, ConditionType.PREPARED)
    pause = retry.pause(situation, decision)
    if pause > 0:
        return decision.waking(pause).settle()
    if in_the_way(situation, keep=record.job):
        return decision.waking(seconds_to_stuck(situation) or PENDING_LOOK_SECONDS).settle()
    config = config_of(situation, record.number, decision.status.plan)
    job = manifest.job(situation.run, config, record.number, situation.settings)
    return decision.creating(*access_objects(situation), job).waking(YOUNG_LOOK_SECONDS).settle()


def access_objects(situation: Situation) -> list[dict[str, object]]:
    """What a pod of the run needs to write its status."""
    account = situation.spec.pod.service_account_name if situation.spec.pod else None
    return access.objects(situation.observed.namespace, account)


def refused(situation: Situation, decision: Decision, kind: ConditionType) -> Decision:
    """The Job could not be created: the condition says why, and it is tried again."""
    refusal = situation.observed.refusal
    if refusal is None:
        return decision
    decision = decision.condition(situation, kind, False, refusal.reason, refusal.message)
    return decision.waking(REFUSED_SECONDS).settle()


def _ending(situation: Situation, decision: Decision, record: JobRecord, why: Cause) -> Decision:
    """The preparation is about to end: said at once, though its pod may take minutes."""
    told = f"Preparation {record.number} is ending with {why.reason}: {why.sentence}"
    message = f"{told} The next follows when it is gone."
    decision = decision.waking(seconds_to_stuck(situation) or PENDING_LOOK_SECONDS)
    return decision.condition(situation, ConditionType.PREPARED, False, Reason.RETRYING, message, why.remedy).settle()


def _budget(record: JobRecord, preemptions: int) -> str:
    """What preparation has used: `retry 1 of 3, preemptions 2 of 20`."""
    return f"retry {record.retries} of {RETRIES}, preemptions {record.preemptions} of {preemptions}"


def _watch(situation: Situation, decision: Decision, record: JobRecord, job: JobView) -> Decision:
    """The Job is open: say whether it runs or what it waits for."""
    if job.running:
        return _runs(situation, decision, record, job)
    if queue.held(job):
        return queue.waits(situation, decision, ConditionType.PREPARED, job)
    late = deadline.pending(situation, job, queue.pending_since(job))
    if late.cause is not None:
        return fail(situation, decision, late.cause.reason, late.cause.message, late.cause.remedy)
    why = diagnose.waiting(job)
    decision = decision.waking(look_seconds(situation, job))
    stays = why.ordinary and has(decision.status.conditions, ConditionType.PREPARED, "False", Reason.PREPARING)
    if stays or (job.pods and all(pod.phase != "Pending" for pod in job.pods)):
        return decision.settle()  # an ordinary start, or an end that its Job does not know yet, changes nothing
    reason = Reason.PREPARING if why.reason is Reason.PROVISIONING else why.reason
    return decision.condition(situation, ConditionType.PREPARED, False, reason, why.message, why.remedy).settle()


def _runs(situation: Situation, decision: Decision, record: JobRecord, job: JobView) -> Decision:
    """The preparation works, or is refused access and asks again: then its pod is not ready.

    A pod that has just started is not ready either, until its kubelet has asked for the first time.
    """
    started = [pod.started for pod in job.pods if pod.started is not None and pod.unready]
    young = ASKED_SECONDS - (situation.now - max(started)).total_seconds() if started else 0.0
    if started and young <= 0:
        message = f"Preparation {record.number} is refused access to the bucket, and asks again for up to two minutes."
        return decision.condition(situation, ConditionType.PREPARED, False, Reason.WAITING_FOR_ACCESS, message).settle()
    decision = decision.waking(young) if started else decision
    checks = _checks(record.number)
    return decision.condition(situation, ConditionType.PREPARED, False, Reason.PREPARING, checks).settle()


def look_seconds(situation: Situation, job: JobView) -> float:
    """Seconds between two looks at a Job whose pods do not run."""
    age = (situation.now - job.created).total_seconds() if job.created is not None else 0.0
    return YOUNG_LOOK_SECONDS if age < YOUNG_SECONDS else PENDING_LOOK_SECONDS


def _ended(situation: Situation, decision: Decision, record: JobRecord, job: JobView, ending: Cause) -> Decision:
    if ending.answer is not Answer.SUCCEED:
        return _again(situation, decision, record, ending)
    found = results.of_job(job)
    if found is None or found.model is None or found.data is None:
        message = f"{job.name} completed, but its pod left no readable result."
        return _again(situation, decision, record, cause(Reason.RESULT_MISSING, message))
    decision = decision.update(prepare=record.model_copy(update={"shape": found.model.shape}))
    return _prepared(situation, decision, found.model.family, found.data)


def _prepared(situation: Situation, decision: Decision, family: str, data: DataStatus) -> Decision:
    """Access works and the data is there: the plan is made again, with what is known now."""
    decision = decision.update(data=data, next_attempt_time=None)
    if model_of(situation, decision) is None:
        message = f"{situation.spec.model.uri} is a {family} model; only Gemma models can be tuned."
        return fail(situation, decision, Reason.INVALID_CONFIG, message, "Name a Gemma model in model.uri.")
    decision = decision.condition(situation, ConditionType.PREPARED, True, Reason.PREPARED, describe.data(data) + ".")
    return planned(situation, decision)


def _again(situation: Situation, decision: Decision, record: JobRecord, ending: Cause) -> Decision:
    """Another preparation, or the end: preemptions are free, other failures have three retries."""
    free = ending.answer is Answer.FREE
    most = situation.limits.max_preemptions or 0
    used, limit = (record.preemptions, most) if free else (record.retries, RETRIES)
    if ending.answer is Answer.FAIL or used >= limit:
        over = f"{ending.sentence} Its retries are used up ({_budget(record, most)})."
        message = ending.message if ending.answer is Answer.FAIL else over
        remedy = remedies.final(ending, started=False, again=situation.settings.try_again)
        decision = decision.condition(situation, ConditionType.PREPARED, False, ending.reason, message, remedy)
        return fail(situation, decision, ending.reason, message, remedy)
    number = record.number + 1
    changes = {"preemptions": used + 1} if free else {"retries": used + 1}
    job = job_name(situation.observed.name, Role.PREPARE, number)
    record = record.model_copy(update={"number": number, "job": job, **changes})
    delay = retry.backoff(situation.observed.uid, number, used) if ending.reason in retry.BACKS_OFF else 0.0
    due = situation.now + timedelta(seconds=delay)
    decision = decision.update(prepare=record, next_attempt_time=rfc3339(due) if delay else None)
    follows = f"in {duration_text(delay)}" if delay else "at once"
    told = f"Preparation {number - 1} ended with {ending.reason}: {ending.sentence}"
    message = f"{told} The next follows {follows} ({_budget(record, most)})."
    decision = decision.condition(situation, ConditionType.PREPARED, False, Reason.RETRYING, message, ending.remedy)
    return _create(situation, decision, record)
