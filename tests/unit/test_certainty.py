"""What is decided from the cache alone, and what is read live first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gemmatune_api.names import LABEL_ROLE, ConditionType, Reason
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_api.status import FineTuneStatus, JobRecord
from gemmatune_operator import conditions
from gemmatune_operator.certainty import Certainty, certainty
from gemmatune_operator.decision import Decision, Deletion
from gemmatune_operator.observe import Observed, of_resource
from gemmatune_operator.ports import Object
from tests.support.situations import NOW, attempt, job, pod, resource

C = ConditionType


def made(role: str, name: str = "x") -> Object:
    return {"kind": "Job", "metadata": {"name": name, "labels": {LABEL_ROLE: role}}}


def status(*true: ConditionType, false: tuple[ConditionType, ...] = (), **fields: Any) -> FineTuneStatus:
    found: list[Any] = []
    for kind in (*true, *false):
        found = conditions.put(found, kind, kind in true, Reason.VALID, "", 1, NOW)
    return FineTuneStatus(conditions=found, **fields)


def run(now: FineTuneStatus, *jobs: str, **fields: Any) -> Observed:
    return replace(of_resource(resource()), status=now, jobs={name: job(name) for name in jobs}, **fields)


ACCOUNT: Object = {"kind": "ServiceAccount", "metadata": {"name": "x"}}
EMPTY = FineTuneStatus()
PREPARING = status(C.ACCEPTED, prepare=JobRecord(number=1, job="quotes-p1", generation=1))
TRAINING = status(C.ACCEPTED, C.PREPARED, attempts=[attempt()])
CLOSED = attempt(end_time="2026-03-01T12:00:00Z")


def test_nothing_to_do() -> None:
    assert certainty(run(TRAINING), Decision(TRAINING), changed=False) is Certainty.NOTHING


def test_the_first_job_comes_before_the_status() -> None:
    first = Decision(PREPARING, create=(ACCOUNT, made("prepare")))
    assert certainty(run(EMPTY), first, changed=True) is Certainty.FIRST_JOB
    assert certainty(run(EMPTY, "quotes-p1"), replace(first, create=()), changed=True) is Certainty.STATUS


def test_defaults_are_recorded_before_the_first_job() -> None:
    given = PREPARING.model_copy(update={"defaults": SiteDefaults(output_prefix="gs://a")})
    first = Decision(given, create=(ACCOUNT, made("prepare")))
    assert certainty(run(EMPTY), first, changed=True) is Certainty.STATUS
    other = replace(first, create=(made("train"),))
    assert certainty(run(EMPTY), other, changed=True) is Certainty.LIVE


def test_a_status_alone() -> None:
    running = status(C.ACCEPTED, C.PREPARED, C.TRAINING, attempts=[attempt()])
    succeeded = status(C.SUCCEEDED, C.FINISHED, attempts=[CLOSED])
    for after in (running, succeeded):
        assert certainty(run(TRAINING, "quotes-t1"), Decision(after), changed=True) is Certainty.STATUS


def test_the_first_attempt_follows_its_preparation() -> None:
    recorded = status(C.ACCEPTED, C.PREPARED, attempts=[attempt()], prepare=PREPARING.prepare)
    after = Decision(recorded, create=(ACCOUNT, made("train")))
    assert certainty(run(PREPARING, "quotes-p1"), after, changed=True) is Certainty.STATUS
    assert certainty(run(PREPARING, "quotes-p1"), after, changed=False) is Certainty.LIVE


READ_LIVE: dict[str, Callable[[], tuple[Observed, Decision]]] = {
    "a deletion": lambda: (run(TRAINING, "quotes-t1"), Decision(TRAINING, delete=(Deletion("Job", "x", "1"),))),
    "a Job that was not seen": lambda: (run(TRAINING), Decision(status(C.TRAINING, attempts=[attempt()]))),
    "a preparation that was not seen": lambda: (run(PREPARING), Decision(status(C.PREPARED))),
    "a failure": lambda: (run(TRAINING, "quotes-t1"), Decision(status(C.FAILED, attempts=[CLOSED]))),
    "another attempt": lambda: (
        run(TRAINING, "quotes-t1"),
        Decision(status(attempts=[CLOSED, attempt(2)]), create=(made("train"),)),
    ),
    "a suspension": lambda: (run(EMPTY), Decision(status(C.SUSPENDED))),
    "the end of one": lambda: (run(status(C.SUSPENDED)), Decision(status(false=(C.SUSPENDED,)))),
    "a rival": lambda: (run(EMPTY, rivals=(resource(),)), Decision(status(false=(C.ACCEPTED,)))),
    "a pod without its Job": lambda: (run(PREPARING, "quotes-p1", lost_pods=(pod(),)), Decision(status(C.PREPARED))),
    "a correction": lambda: (run(status(C.FAILED)), Decision(PREPARING, create=(made("prepare"),))),
    "an attempt of a new run": lambda: (run(EMPTY), Decision(TRAINING, create=(made("train"),))),
    "a Job after a crash": lambda: (run(TRAINING), Decision(TRAINING, create=(made("train"),))),
}


@pytest.mark.parametrize("case", READ_LIVE)
def test_everything_else_is_read_live(case: str) -> None:
    observed, decision = READ_LIVE[case]()
    changed = decision.status != observed.status
    assert certainty(observed, decision, changed=changed) is Certainty.LIVE
