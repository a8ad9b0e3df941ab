"""A run that is deleted: what its open attempt has used by then. It is counted, since no status says it any more."""

from __future__ import annotations

from gemmatune_api.status import FineTuneStatus
from gemmatune_operator.decision import Decision, Situation, stamp
from gemmatune_operator.observe import Observed, open_attempt
from gemmatune_operator.policies.close import summed

DELETED = "Deleted"
"""How such an attempt ended, in counters and log; no status has it."""


def trains_on(observed: Observed) -> bool:
    """Whether a run that is being deleted still has its open attempt's Job: it is paid for until that ends."""
    attempt = open_attempt(observed.status)
    job = observed.jobs.get(attempt.job) if attempt is not None else None
    return job is not None and not job.finished


def deleted(situation: Situation) -> FineTuneStatus | None:
    """The last status with its open attempt closed as of now; None where none is open that had begun."""
    status = situation.observed.status
    attempt = open_attempt(status)
    if attempt is None:
        return None
    job = situation.observed.jobs.get(attempt.job)
    if job is None and attempt.start_time is None:
        return None
    if situation.resource is None and attempt.cost_per_hour is None:
        attempt = attempt.model_copy(update={"cost_per_hour": 0.0})  # without a spec nobody knows its accelerator
    timers = summed(situation, Decision(status=status), attempt, job)
    last = attempt.model_copy(update={"end_time": stamp(situation), "reason": DELETED})
    return status.model_copy(update={"attempts": [*status.attempts[:-1], last], "timers": timers})
