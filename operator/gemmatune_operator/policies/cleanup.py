"""Jobs that nothing needs any more are deleted, and a new one starts only when no other can still run."""

from __future__ import annotations

from gemmatune_api.names import ConditionType, Reason
from gemmatune_operator import diagnose
from gemmatune_operator.conditions import has
from gemmatune_operator.decision import Decision, Deletion, Situation
from gemmatune_operator.diagnose import Cause
from gemmatune_operator.observe import open_attempt
from gemmatune_operator.policies.outcome import STOPPED
from gemmatune_operator.views import JobView, PodView

OVERDUE_SECONDS = 60.0
"""How long after its grace period a pod still blocks; then its node is lost, and the trainer's fence covers it."""


def cleanup(situation: Situation, decision: Decision) -> Decision:
    """Deletes the run's Jobs that still run and are not wanted, and pods that outlived their Job."""
    wanted = _wanted(decision)
    for job in situation.observed.jobs.values():
        ending = job.deleting or job.finished or job.failure_target
        if job.owner_uid == situation.observed.uid and job.name not in wanted and not ending:
            decision = decision.deleting(Deletion("Job", job.name, job.uid))
    for pod in situation.observed.lost_pods:
        if pod.job not in wanted and not pod.ended and pod.deleted is None:
            decision = decision.deleting(Deletion("Pod", pod.name, pod.uid))
    return decision


def _wanted(decision: Decision) -> set[str]:
    suspending = has(decision.status.conditions, ConditionType.SUSPENDED, "False", Reason.SUSPENDING)
    if decision.true(ConditionType.FINISHED) or decision.true(ConditionType.SUSPENDED) or suspending:
        return set()
    wanted = set()
    attempt = open_attempt(decision.status)
    if attempt is not None and attempt.reason not in STOPPED:
        wanted.add(attempt.job)
    if decision.status.prepare is not None:
        wanted.add(decision.status.prepare.job)
    if decision.status.merge is not None:
        wanted.add(decision.status.merge.job)
    return wanted


def in_the_way(situation: Situation, keep: str | None = None) -> bool:
    """Whether a Job of this run other than `keep`, or a pod without a Job, may still run."""
    jobs = [job for job in situation.observed.jobs.values() if job.name != keep]
    lost = [pod for pod in situation.observed.lost_pods if pod.job != keep]
    alive = [pod for pod in lost if not (pod.ended or _overdue(situation, pod))]
    return bool(alive) or any(blocks(situation, job) for job in jobs)


def blocks(situation: Situation, job: JobView) -> bool:
    """Whether a Job may still run: it is open, and not all of its pods are on lost nodes."""
    if job.finished and job.active == 0 and job.terminating == 0:
        return False
    return not stuck(situation, job)


def stuck(situation: Situation, job: JobView) -> bool:
    """Whether all of a Job's pods that have not ended should have been gone long ago."""
    alive = [pod for pod in job.pods if not pod.ended]
    return bool(alive) and all(_overdue(situation, pod) for pod in alive)


def end_of(situation: Situation, job: JobView) -> Cause | None:
    """How a Job ended, or why it is given up; None while it goes on."""
    ending = diagnose.ended(job)
    if ending is None and stuck(situation, job):
        return diagnose.lost(next(pod for pod in job.pods if not pod.ended))
    return ending


def seconds_to_stuck(situation: Situation) -> float | None:
    """Seconds until a terminating pod counts as stuck; None where none is terminating."""
    pods = [pod for job in situation.observed.jobs.values() for pod in job.pods] + list(situation.observed.lost_pods)
    ends = [pod.deleted for pod in pods if pod.deleted is not None and not pod.ended]
    rest = [OVERDUE_SECONDS + (end - situation.now).total_seconds() for end in ends]
    return max(1.0, min(rest) + 1.0) if rest else None


def _overdue(situation: Situation, pod: PodView) -> bool:
    return pod.overdue(situation.now, OVERDUE_SECONDS)
