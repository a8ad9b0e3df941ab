"""Kueue's part: a Job that it holds waits as Queued, and one that it takes back after training ends for free.

Kueue sets `suspend` on a Job that names a queue, changes its node selector and tolerations when it admits it, and
takes the admission back by setting `suspend` again. The operator writes none of these. A suspended Job loses its pods
and would get new ones under the same attempt, which the fence of that attempt refuses: so an attempt that trained is
closed, and the next one queues.
"""

from __future__ import annotations

from datetime import datetime

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Attempt
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import Cause, cause
from gemmatune_operator.views import JobView


def held(job: JobView) -> bool:
    """Whether somebody holds the Job's pods back."""
    return job.suspended and not (job.finished or job.failure_target or job.deleting)


def pending_since(job: JobView) -> datetime | None:
    """When the Job's pods could first have been made: at its creation, or when it was last admitted."""
    return None if job.suspended else job.resumed or job.created


def evicted(attempt: Attempt, job: JobView) -> Cause | None:
    """The end of an attempt that had begun to train when its Job was suspended."""
    trained = attempt.training_time is not None or any(pod.started is not None for pod in job.pods)
    if not (job.suspended and trained):
        return None
    return cause(Reason.EVICTED_BY_QUEUE, f"{_who(job)} suspended the Job {job.name} while it trained.")


def waits(situation: Situation, decision: Decision, kind: ConditionType, job: JobView) -> Decision:
    """Says that the Job is queued; its admission is an event, so nothing needs to be looked at before."""
    if job.queue:
        message = f"The Job {job.name} waits in the queue {job.queue} until Kueue admits it."
        return decision.condition(situation, kind, False, Reason.QUEUED, message).settle()
    message = f"The Job {job.name} is suspended, not by the operator, and waits until it no longer is."
    remedy = f"Find out who sets spec.suspend of the Job {job.name} (Kueue may manage Jobs that name no queue, too)."
    return decision.condition(situation, kind, False, Reason.QUEUED, message, remedy).settle()


def _who(job: JobView) -> str:
    return "Kueue" if job.queue else "Somebody"
