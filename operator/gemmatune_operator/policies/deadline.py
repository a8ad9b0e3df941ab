"""limits.deadline bounds training time, limits.pendingDeadline the wait of one attempt for its pods."""

from __future__ import annotations

from datetime import datetime

from gemmatune_api.base import seconds
from gemmatune_api.names import Reason
from gemmatune_api.status import Attempt
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import Cause, cause, waiting
from gemmatune_operator.policies.close import seconds_trained, training_time
from gemmatune_operator.policies.outcome import GOES_ON, Outcome
from gemmatune_operator.views import JobView


def training(situation: Situation, decision: Decision, attempt: Attempt, job: JobView) -> Outcome:
    """Ends the run when its attempts have trained for limits.deadline; waiting and pauses do not count."""
    limit = situation.limits.deadline
    began = parse_time(attempt.training_time)
    if limit is None or began is None:
        return GOES_ON
    trained = decision.timers.active_seconds + (situation.now - began).total_seconds()
    rest = seconds(limit) - trained
    if rest > 0:
        return Outcome(wake=rest)
    return Outcome(_exceeded(situation), gently=True)


def backstop(situation: Situation, decision: Decision, attempt: Attempt, job: JobView, ending: Cause) -> Cause:
    """The end of a Job by its activeDeadlineSeconds, which it was made with: no end of a run whose limits.deadline was
    raised since, and that has not trained for so long. Its trainer got SIGTERM, as in an interruption."""
    limit = situation.limits.deadline
    began = training_time(attempt, job)
    if ending.reason is not Reason.DEADLINE_EXCEEDED or began is None:
        return ending
    trained = decision.timers.active_seconds + seconds_trained(situation, began, job)
    if limit is not None and trained >= seconds(limit):
        return ending
    message = f"The Job {job.name} reached its activeDeadlineSeconds, which it was given by an earlier limits.deadline."
    return cause(Reason.INTERRUPTED, message)


def used_up(situation: Situation, decision: Decision) -> Cause | None:
    """The cause that keeps another attempt from starting, once the closed ones have trained for limits.deadline."""
    limit = situation.limits.deadline
    return _exceeded(situation) if limit is not None and decision.timers.active_seconds >= seconds(limit) else None


def _exceeded(situation: Situation) -> Cause:
    remedy = f"Raise limits.deadline, then {situation.settings.try_again}: the run resumes."
    message = f"The run has trained for limits.deadline ({situation.limits.deadline})."
    return cause(Reason.DEADLINE_EXCEEDED, message, remedy)


def pending(situation: Situation, job: JobView, since: datetime | None) -> Outcome:
    """Ends the run when the pods of a Job have not all run within limits.pendingDeadline."""
    limit = situation.limits.pending_deadline
    if limit is None or since is None or job.running:
        return GOES_ON
    rest = seconds(limit) - (situation.now - since).total_seconds()
    if rest > 0:
        return Outcome(wake=rest)
    why = waiting(job)
    message = f"No running pod within limits.pendingDeadline ({limit}); at last {why.reason}: {why.message}"
    remedy = f"{why.remedy} Then {situation.settings.try_again}.".strip()
    return Outcome(cause(Reason.DEADLINE_EXCEEDED, message, remedy))
