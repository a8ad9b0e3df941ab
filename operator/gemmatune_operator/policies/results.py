"""What a preparation found, read from the termination message of its pod."""

from __future__ import annotations

from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.status import FineTuneStatus
from gemmatune_operator.observe import Observed
from gemmatune_operator.views import JobView


def of_job(job: JobView) -> PrepareResult | None:
    """The result of a completed prepare Job; None where its pod is gone or its message cannot be read."""
    pod = next((pod for pod in job.pods if pod.phase == "Succeeded"), None)
    return from_text(pod.termination_message, PrepareResult) if pod is not None else None


def current(observed: Observed, status: FineTuneStatus) -> bool:
    """Whether what was prepared is what the spec asks for; from the first attempt on it always is."""
    record = status.prepare
    return bool(status.attempts) or (record is not None and record.generation == observed.generation)


def prepared(observed: Observed, status: FineTuneStatus) -> PrepareResult | None:
    """The result of the recorded preparation, while it can be read and holds for the spec."""
    if not current(observed, status):
        return None
    job = observed.jobs.get(status.prepare.job) if status.prepare else None
    return of_job(job) if job is not None and job.complete else None
