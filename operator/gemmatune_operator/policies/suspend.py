"""spec.suspend: what runs is stopped with a checkpoint, and goes on when it is false again.

A run whose attempt has completed by then, or completes while it is being stopped, is done: nothing of it could go on.
"""

from __future__ import annotations

from gemmatune_api.names import ConditionType, Reason
from gemmatune_operator import conditions
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import cause
from gemmatune_operator.observe import open_attempt, trained
from gemmatune_operator.policies.cleanup import in_the_way
from gemmatune_operator.policies.close import closed
from gemmatune_operator.policies.complete import completion, late, succeeded
from gemmatune_operator.policies.merge import given_up


def suspend(situation: Situation, decision: Decision) -> Decision:
    """Closes the attempt, lets cleanup delete the Jobs, and says Suspended once they are gone."""
    decision = late(situation, decision)
    if decision.settled:
        return decision
    if not situation.spec.suspend:
        return _resumed(situation, decision)
    decision = _stopped(situation, decision)
    if decision.settled:
        return decision
    decision = given_up(situation, decision.update(next_attempt_time=None))
    done = trained(decision.status)
    if in_the_way(situation):
        message = "The merge stops." if done else "The trainer saves a checkpoint and stops."
        decision = decision.condition(situation, ConditionType.SUSPENDED, False, Reason.SUSPENDING, message)
    else:
        message = "Nothing runs; spec.suspend: false goes on "
        message += "with the merge." if done else f"from {_newest(decision)}."
        decision = _reached(decision)
        decision = decision.condition(situation, ConditionType.SUSPENDED, True, Reason.SUSPENDED, message)
    if decision.true(ConditionType.TRAINING):
        decision = decision.condition(
            situation, ConditionType.TRAINING, False, Reason.SUSPENDED, "The run is suspended."
        )
    return decision.settle()


def _stopped(situation: Situation, decision: Decision) -> Decision:
    """With the open attempt closed: suspended, or completed where it has come so far."""
    attempt = open_attempt(decision.status)
    jobs = situation.observed.jobs
    if attempt is None or (attempt.start_time is None and attempt.job not in jobs):
        return decision
    job = jobs.get(attempt.job)
    done = completion(decision, job)
    ending = done or cause(Reason.SUSPENDED, "The run was suspended.")
    decision = closed(situation, decision, attempt, job, ending, counted=False)
    return succeeded(situation, decision, done.said) if done is not None else decision


def _newest(decision: Decision) -> str:
    saved = decision.status.checkpoint
    return f"the checkpoint of step {saved.step}" if saved is not None else "the newest checkpoint"


def _reached(decision: Decision) -> Decision:
    """The attempt's last step with what the trainer has saved since it was asked to stop."""
    saved, attempts = decision.status.checkpoint, decision.status.attempts
    last = attempts[-1] if attempts else None
    if saved is None or last is None or last.reason != Reason.SUSPENDED or (last.to_step or 0) >= saved.step:
        return decision
    return decision.update(attempts=[*attempts[:-1], last.model_copy(update={"to_step": saved.step})])


def _resumed(situation: Situation, decision: Decision) -> Decision:
    condition = conditions.find(decision.status.conditions, ConditionType.SUSPENDED)
    if condition is None or condition.reason == Reason.RESUMED:
        return decision
    return decision.condition(situation, ConditionType.SUSPENDED, False, Reason.RESUMED, "The run goes on.")
