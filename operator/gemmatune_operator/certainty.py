"""Which decisions may rest on what the watches have shown; all others are made again from what is read live."""

from __future__ import annotations

from enum import Enum

from gemmatune_api import names
from gemmatune_api.names import ConditionType, Role
from gemmatune_api.status import FineTuneStatus
from gemmatune_operator import conditions
from gemmatune_operator.decision import Decision
from gemmatune_operator.observe import Observed, open_attempt
from gemmatune_operator.ports import Object

C = ConditionType


class Certainty(Enum):
    """How a decision that was made from the cache may be carried out."""

    NOTHING = "nothing is to be done"
    FIRST_JOB = "the first Job of a new run is created; that its name is taken shows then"
    STATUS = "the status is written against its version, then at most a first Job is created"
    LIVE = "everything is read live first"


def certainty(observed: Observed, decision: Decision, *, changed: bool) -> Certainty:
    """What the cache is good for; `changed`: the decision changes the operator's part of the status.

    A status write is refused where the resource has changed since. So what is left to fear is a Job or a pod that the
    watches have not shown yet, or whose deletion they missed: nothing is concluded here from the absence of one, and
    nothing is deleted.
    """
    if not (changed or decision.create or decision.delete):
        return Certainty.NOTHING
    if decision.delete or observed.rivals or observed.lost_pods:
        return Certainty.LIVE
    jobs = [obj for obj in decision.create if obj["kind"] == "Job"]
    if decision.create and (_new(observed.status) and not observed.jobs):
        if not _are(jobs, Role.PREPARE):
            return Certainty.LIVE
        # Defaults are recorded before a Job is made by them: after a crash they may be others.
        return Certainty.FIRST_JOB if decision.status.defaults is None else Certainty.STATUS
    if not changed or not _jobs_known(observed) or not _harmless(observed.status, decision.status):
        return Certainty.LIVE
    first = not observed.status.attempts and len(decision.status.attempts) == 1 and _are(jobs, Role.TRAIN)
    return Certainty.STATUS if first or not decision.create else Certainty.LIVE


def _new(status: FineTuneStatus) -> bool:
    return not status.conditions and status.prepare is None and not status.attempts


def _are(jobs: list[Object], role: Role) -> bool:
    return len(jobs) == 1 and jobs[0]["metadata"]["labels"].get(names.LABEL_ROLE) == role


def _jobs_known(observed: Observed) -> bool:
    """Whether every Job that the status speaks of has been seen, so that no absence is taken for an end."""
    status, attempt = observed.status, open_attempt(observed.status)
    named = {attempt.job} if attempt is not None else set()
    if status.prepare is not None and not status.attempts:
        named.add(status.prepare.job)
    if status.merge is not None:
        named.add(status.merge.job)
    return named <= observed.jobs.keys()


def _harmless(before: FineTuneStatus, after: FineTuneStatus) -> bool:
    """Whether nothing ends but in success, and nothing is said of a suspension, which waits for Jobs to be gone."""
    pause = [conditions.find(status.conditions, C.SUSPENDED) for status in (before, after)]
    failed = conditions.is_true(after.conditions, C.FAILED) and not conditions.is_true(before.conditions, C.FAILED)
    old, new = open_attempt(before), open_attempt(after)
    ended = old is not None and (new is None or new.number != old.number)
    return pause[0] == pause[1] and not failed and (not ended or conditions.is_true(after.conditions, C.SUCCEEDED))
