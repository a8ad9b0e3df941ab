"""The merge after training: its Job on a CPU node, its own retries, and the end of the run."""

from __future__ import annotations

from datetime import timedelta

from gemmatune_api.base import duration_text, seconds
from gemmatune_api.defaults import FIRST_STEP_STALL_SECONDS
from gemmatune_api.names import ConditionType, Reason, Role, job_name
from gemmatune_api.status import JobRecord, Overrides
from gemmatune_operator import diagnose
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision, Situation, fail
from gemmatune_operator.diagnose import Answer, Cause, cause
from gemmatune_operator.manifests import merge as manifest
from gemmatune_operator.observe import trained
from gemmatune_operator.policies import deadline, remedies, retry
from gemmatune_operator.policies.accept import config_of
from gemmatune_operator.policies.cleanup import end_of, in_the_way, seconds_to_stuck
from gemmatune_operator.policies.outcome import GOES_ON, Outcome
from gemmatune_operator.policies.prepare import (
    PENDING_LOOK_SECONDS,
    RETRIES,
    YOUNG_LOOK_SECONDS,
    access_objects,
    look_seconds,
    refused,
)
from gemmatune_operator.policies.stall import LOOKS_PER_TIMEOUT
from gemmatune_operator.views import JobView


def merge(situation: Situation, decision: Decision) -> Decision:
    """Moves the merge of a trained run on; the first time, records it."""
    if not trained(decision.status):
        return decision
    record = decision.status.merge
    if record is None:
        return _begin(situation, decision)
    job = situation.observed.jobs.get(record.job)
    if job is None and record.start_time is None:
        return _create(situation, decision, record)
    if job is None:
        return _again(situation, decision, record, None, diagnose.vanished(record.job))
    record = record.model_copy(update={"start_time": record.start_time or rfc3339(job.created or situation.now)})
    decision = decision.update(merge=record, next_attempt_time=None)
    ending = end_of(situation, job)
    if ending is not None:
        return _ended(situation, decision, record, job, ending)
    sign = diagnose.ending(job)
    return _ending(situation, decision, record, sign) if sign else _watch(situation, decision, record, job)


def given_up(situation: Situation, decision: Decision) -> Decision:
    """With another merge recorded in place of one that has begun and that a suspension stops."""
    record = decision.status.merge
    if record is None or not (record.start_time or record.job in situation.observed.jobs):
        return decision
    return retry.merge_again(situation, decision, record)


def _begin(situation: Situation, decision: Decision) -> Decision:
    """The first merge, recorded: from here its Job may write the trainer's fields."""
    record = JobRecord(number=1, job=job_name(situation.observed.name, Role.MERGE, 1))
    message = "Merge 1 is about to start; the adapter is written and verified."
    decision = decision.condition(situation, ConditionType.SUCCEEDED, False, Reason.MERGING, message)
    waits = _waits(record)
    decision = decision.condition(situation, ConditionType.PROVISIONED, False, Reason.PROVISIONING, waits)
    return _create(situation, decision.update(merge=record, job=record.job, next_attempt_time=None), record)


def _create(situation: Situation, decision: Decision, record: JobRecord) -> Decision:
    """Creates the Job once its time has come and no earlier one can still run."""
    if situation.observed.refusal is not None:
        return refused(situation, decision, ConditionType.PROVISIONED)
    pause = retry.pause(situation, decision)
    if pause > 0:
        return decision.waking(pause).settle()
    if in_the_way(situation, keep=record.job):
        return decision.waking(seconds_to_stuck(situation) or PENDING_LOOK_SECONDS).settle()
    plan = decision.status.plan
    if plan is None or plan.merge is None:
        raise ValueError("a merge was recorded before it was planned")
    config = config_of(situation, record.number, plan)
    overrides = record.overrides or Overrides()
    job = manifest.job(situation.run, config, plan.merge, overrides, record.number, situation.settings)
    return decision.creating(*access_objects(situation), job).waking(YOUNG_LOOK_SECONDS).settle()


def _ending(situation: Situation, decision: Decision, record: JobRecord, why: Cause) -> Decision:
    """The merge is about to end: said at once, though its pod may take minutes."""
    message = f"Merge {record.number} is ending with {why.reason}: {why.sentence} The next follows when it is gone."
    decision = _told(situation, decision, message, remedies.merge_underway(why))
    return decision.waking(seconds_to_stuck(situation) or PENDING_LOOK_SECONDS).settle()


def _told(situation: Situation, decision: Decision, message: str, remedy: str) -> Decision:
    """With what becomes of a merge that ends, and that another one follows."""
    decision = decision.condition(situation, ConditionType.SUCCEEDED, False, Reason.MERGING, message, remedy)
    return decision.condition(situation, ConditionType.PROVISIONED, False, Reason.RETRYING, message, remedy)


def _watch(situation: Situation, decision: Decision, record: JobRecord, job: JobView) -> Decision:
    """The Job is open: say whether it runs or what it waits for."""
    if job.running:
        quiet = _quiet(situation, job)
        if quiet.cause is not None:
            return _again(situation, decision, record, job, quiet.cause)
        message = f"Merge {record.number} writes 16-bit weights on {next(pod.node for pod in job.pods) or 'its node'}."
        decision = decision.condition(situation, ConditionType.SUCCEEDED, False, Reason.MERGING, message)
        decision = decision.condition(situation, ConditionType.PROVISIONED, True, Reason.RUNNING, message)
        return (decision.waking(quiet.wake) if quiet.wake is not None else decision).settle()
    late = deadline.pending(situation, job, job.created)
    if late.cause is not None:
        remedy = remedies.merge_underway(diagnose.waiting(job)) or "Look at the Job and its pod."
        why = cause(late.cause.reason, late.cause.message, remedy)
        return _failed(situation, decision, why, why.sentence)
    if job.pods and all(pod.phase != "Pending" for pod in job.pods):
        return decision.settle()  # its pod ended or is being deleted; the Job will say how
    why = diagnose.waiting(job)
    message = _waits(record) if why.ordinary else why.message
    remedy = remedies.merge_underway(why)
    decision = decision.condition(situation, ConditionType.PROVISIONED, False, why.reason, message, remedy)
    return decision.waking(look_seconds(situation, job)).settle()


def _waits(record: JobRecord) -> str:
    return f"Merge {record.number} waits for its node."


def _quiet(situation: Situation, job: JobView) -> Outcome:
    """Ends a merge without a heartbeat for limits.stallTimeout, and never before a first step would be ended."""
    limit, still = situation.limits.stall_timeout, situation.observed.still_since
    begun = [pod.started for pod in job.pods if pod.started is not None]
    if limit is None or still is None or not begun:
        return GOES_ON
    allowed = float(max(seconds(limit), FIRST_STEP_STALL_SECONDS))
    quiet = (situation.now - max(still, *begun)).total_seconds()
    if quiet < allowed:
        return Outcome(wake=min(allowed - quiet, allowed / LOOKS_PER_TIMEOUT))
    return Outcome(cause(Reason.STALLED, f"No heartbeat of the merge for {duration_text(quiet)}."))


def _ended(situation: Situation, decision: Decision, record: JobRecord, job: JobView, ending: Cause) -> Decision:
    if ending.answer is not Answer.SUCCEED:
        return _again(situation, decision, record, job, ending)
    artifacts = decision.status.artifacts
    merged = artifacts.merged if artifacts else None
    if merged is None and not (ending.said and ending.said.manifest):
        return _again(situation, decision, record, job, cause(Reason.RESULT_MISSING, pod=ending.pod, said=ending.said))
    output = situation.spec.output.uri
    message = f"The adapter and the merged weights are written and verified: {_adapter(situation, decision)}, "
    message += f"{merged or f'{output}/merged'}."
    if ending.said is not None and ending.said.message:
        message += f" {ending.said.message}"
    decision = decision.condition(situation, ConditionType.SUCCEEDED, True, Reason.COMPLETED, message)
    return decision.condition(situation, ConditionType.FINISHED, True, Reason.COMPLETED, message).settle()


def _again(situation: Situation, decision: Decision, record: JobRecord, job: JobView | None, ending: Cause) -> Decision:
    """Another merge, or the end: preemptions are free, other failures have three retries of their own."""
    free = ending.answer is Answer.FREE
    most = situation.limits.max_preemptions or 0
    used, limit = (record.preemptions, most) if free else (record.retries, RETRIES)
    if ending.answer is Answer.FAIL:
        return _failed(situation, decision, ending, ending.sentence)
    if used >= limit:
        text = f"{ending.sentence} Its retries are used up ({_budget(record, most)})."
        return _failed(situation, decision, ending, text)
    grown = retry.grown(record.overrides, situation, job, ending)
    changes = {"preemptions": used + 1} if free else {"retries": used + 1}
    record = record.model_copy(update={"overrides": grown, **changes})
    delay = retry.backoff(situation.observed.uid, record.number, used) if ending.reason in retry.BACKS_OFF else 0.0
    due = rfc3339(situation.now + timedelta(seconds=delay)) if delay else None
    follows = f"in {duration_text(delay)}" if delay else "at once"
    message = f"Merge {record.number} ended with {ending.reason}: {ending.sentence} "
    message += f"The next follows {follows} ({_budget(record, most)})."
    decision = retry.merge_again(situation, decision, record)
    decision = _told(situation, decision, message, remedies.merge_underway(ending)).update(next_attempt_time=due)
    following = decision.status.merge
    assert following is not None
    return _create(situation, decision, following)


def _budget(record: JobRecord, preemptions: int) -> str:
    """What merging has used: `retry 1 of 3, preemptions 2 of 20`."""
    return f"retry {record.retries} of {RETRIES}, preemptions {record.preemptions} of {preemptions}"


def _failed(situation: Situation, decision: Decision, ending: Cause, text: str) -> Decision:
    """The run ends as Failed; what training left stays."""
    message = f"The merge ended with {ending.reason}: {text} The adapter is whole: {_adapter(situation, decision)}."
    decision = decision.condition(situation, ConditionType.SUCCEEDED, False, Reason.MERGE_FAILED, message)
    return fail(
        situation, decision, Reason.MERGE_FAILED, message, remedies.merge_failed(ending, situation.settings.try_again)
    )


def _adapter(situation: Situation, decision: Decision) -> str:
    artifacts = decision.status.artifacts
    return (artifacts.adapter if artifacts else None) or f"{situation.spec.output.uri}/adapter"
