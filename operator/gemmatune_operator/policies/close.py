"""Closing an attempt: when, why, how far it came, and what it used up."""

from __future__ import annotations

from datetime import datetime

from gemmatune_api.status import Attempt, Timers
from gemmatune_operator.conditions import parse_time, rfc3339
from gemmatune_operator.decision import Decision, Situation, stamp
from gemmatune_operator.diagnose import Cause
from gemmatune_operator.policies.cost import HOUR, rate
from gemmatune_operator.views import JobView


def closed(
    situation: Situation, decision: Decision, attempt: Attempt, job: JobView | None, cause: Cause, *, counted: bool
) -> Decision:
    """The status with the attempt closed, and its training time and cost added up."""
    progress = decision.status.progress
    began = training_time(attempt, job)
    last = attempt.model_copy(
        update={
            "start_time": attempt.start_time or stamp(situation),
            "training_time": rfc3339(began) if began else None,
            "end_time": stamp(situation),
            "reason": cause.reason.value,
            "message": cause.message,
            "remedy": cause.remedy,
            "counted": counted,
            "to_step": cause.step if cause.step is not None else progress.step if progress else None,
        }
    )
    timers = summed(situation, decision, attempt, job)
    return decision.update(attempts=[*decision.status.attempts[:-1], last], timers=timers)


def summed(situation: Situation, decision: Decision, attempt: Attempt, job: JobView | None) -> Timers:
    """The clocks with the training time and the cost of an attempt that ends now."""
    seconds = seconds_trained(situation, training_time(attempt, job), job)
    spent = (rate(situation, decision, attempt) or 0.0) * seconds / HOUR
    return decision.timers.model_copy(
        update={
            "active_seconds": round(decision.timers.active_seconds + seconds, 1),
            "spent": round(decision.timers.spent + spent, 6),
            "pending_since": None,
        }
    )


def training_time(attempt: Attempt, job: JobView | None) -> datetime | None:
    """When all pods of an attempt ran: as recorded, else as the pods tell."""
    recorded = parse_time(attempt.training_time)
    if recorded is not None or job is None:
        return recorded
    starts = [pod.started for pod in job.pods if pod.started is not None]
    return max(starts) if len(starts) >= job.wanted else None


def seconds_trained(situation: Situation, began: datetime | None, job: JobView | None) -> float:
    """Seconds from the start of training to its end, or to now while a pod still runs."""
    if began is None:
        return 0.0
    ends = [pod.finished for pod in job.pods if pod.finished is not None] if job is not None else []
    return max(0.0, ((max(ends) if ends else situation.now) - began).total_seconds())
