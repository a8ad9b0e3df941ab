"""The good end: when an attempt has completed, also one that was to stop, and what the run says then."""

from __future__ import annotations

from gemmatune_api.fit import merges
from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import ConditionType, Reason
from gemmatune_operator import diagnose
from gemmatune_operator.conditions import find
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import Answer, Cause, cause
from gemmatune_operator.views import JobView


def verified(decision: Decision, ending: Cause) -> Cause:
    """Success counts only with the manifest that the trainer names."""
    if ending.answer is not Answer.SUCCEED:
        return ending
    named = (ending.said.manifest if ending.said else None) or _manifest(decision)
    return ending if named else cause(Reason.RESULT_MISSING, pod=ending.pod, said=ending.said)


def completion(decision: Decision, job: JobView | None) -> Cause | None:
    """The success of an attempt that is asked to stop, or was; None where it has none.

    The manifest is the last thing that a trainer names: with it the attempt has completed, however its Job ends, which
    never becomes Complete where it is being deleted.
    """
    done = diagnose.completed(job) if job is not None else None
    if done is not None and done.said is not None and done.said.manifest:
        return done
    return cause(Reason.COMPLETED) if _manifest(decision) else None


def late(situation: Situation, decision: Decision) -> Decision:
    """With the success of an attempt that was suspended too late to stop it: nothing is left to be trained."""
    attempts, jobs = decision.status.attempts, situation.observed.jobs
    if attempts and attempts[-1].start_time is None and attempts[-1].job not in jobs:
        attempts = attempts[:-1]  # recorded by a resumption that came before the end: it is not needed
    last = attempts[-1] if attempts else None
    if last is None or last.end_time is None or last.reason != Reason.SUSPENDED:
        return decision
    done = completion(decision, jobs.get(last.job))
    if done is None:
        return decision
    progress = decision.status.progress
    reached = done.step if done.step is not None else progress.step if progress else last.to_step
    words = {"reason": done.reason.value, "message": done.message, "remedy": done.remedy, "to_step": reached}
    decision = decision.update(attempts=[*attempts[:-1], last.model_copy(update=words)], job=last.job)
    return succeeded(situation, decision, done.said)


def succeeded(situation: Situation, decision: Decision, said: TerminationMessage | None) -> Decision:
    """With what the trainer says of the end: whether the adapter is better than the base."""
    artifacts = decision.status.artifacts
    kind = "model" if situation.spec.method == "full" else "adapter"
    where = (getattr(artifacts, kind) if artifacts else None) or f"{situation.spec.output.uri}/{kind}"
    message = f"The {kind} is written and verified: {where}."
    if said is not None and said.message:
        message += f" {said.message}"
    decision = decision.condition(situation, ConditionType.TRAINING, False, Reason.COMPLETED, message)
    if merges(situation.spec):
        return decision  # the merge has the last word
    remedy = said.remedy if said is not None else ""
    if find(decision.status.conditions, ConditionType.SUSPENDED) is not None:
        decision = decision.condition(situation, ConditionType.SUSPENDED, False, Reason.COMPLETED, message)
    decision = decision.condition(situation, ConditionType.SUCCEEDED, True, Reason.COMPLETED, message, remedy)
    return decision.condition(situation, ConditionType.FINISHED, True, Reason.COMPLETED, message).settle()


def _manifest(decision: Decision) -> str | None:
    artifacts = decision.status.artifacts
    return artifacts.manifest if artifacts is not None else None
