"""The operator's cache: what wakes a run and what does not, what is known of it, and what a list puts right."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.names import ANNOTATION_RETRY
from gemmatune_operator.cache import STORIES, Cache, Key
from gemmatune_operator.ports import Object
from gemmatune_operator.workqueue import Priority
from tests.support.situations import UID, resource

RUN: Key = ("team", "quotes")


def version(number: int, **meta: Any) -> Object:
    status = meta.pop("status", {"phase": "Training", "attempts": [{"number": 1, "job": "quotes-t1"}]})
    return resource(status=status, resourceVersion=str(number), **meta)


def child(kind: str, name: str, number: int = 1, uid: str = "", **fields: Any) -> Object:
    labels = {names.LABEL_RUN: "quotes", names.LABEL_RUN_UID: UID, "batch.kubernetes.io/job-name": "quotes-t1"}
    owners = [{"kind": names.KIND, "uid": UID, "controller": True}]
    meta = {"name": name, "namespace": "team", "uid": uid or f"uid-{name}", "resourceVersion": str(number)}
    return {"kind": kind, "metadata": {**meta, "labels": labels, "ownerReferences": owners}, **fields}


def job(number: int = 1, uid: str = "", **status: Any) -> Object:
    return child("Job", "quotes-t1", number, uid, status=status)


def event(uid: str, reason: str = "FailedCreate", message: str = "exceeded quota") -> Object:
    about = {"kind": "Job", "namespace": "team", "name": "quotes-t1", "uid": uid}
    if uid.endswith("-x"):
        about |= {"kind": "Pod", "name": "quotes-t1-x7k2p"}
    return {"involvedObject": about, "reason": reason, "message": message}


COMPLETE = [{"type": "Complete", "status": "True"}]


def test_progress_wakes_nobody() -> None:
    cache = Cache()
    assert cache.resource("ADDED", version(1, status={})) == [(RUN, Priority.URGENT)]
    assert cache.resource("MODIFIED", version(2)) == []
    progress = {"step": 3, "historySteps": [1, 2], "historyLoss": [0.5, 0.4]}
    assert cache.resource("MODIFIED", version(3, status={"progress": progress, "samples": []})) == []
    observed = cache.observe(*RUN)
    assert observed is not None
    assert observed.status.progress is not None
    assert (observed.status.progress.step, observed.status.progress.history_steps) == (3, [])
    assert cache.resource("MODIFIED", version(4, generation=2)) == [(RUN, Priority.ROUTINE)]
    retried = version(5, generation=2, annotations={ANNOTATION_RETRY: "1"})
    assert cache.resource("MODIFIED", retried) == [(RUN, Priority.ROUTINE)]
    deleting = version(6, generation=2, annotations={ANNOTATION_RETRY: "1"}, deletionTimestamp="2026-03-01T12:00:00Z")
    assert cache.resource("MODIFIED", deleting) == [(RUN, Priority.ROUTINE)]


def test_a_list_brings_a_look_where_something_is_new() -> None:
    cache = Cache()
    assert cache.resource(None, version(1)) == [(RUN, Priority.ROUTINE)]
    assert cache.resource(None, version(1)) == []
    assert cache.resource(None, version(2)) == [(RUN, Priority.ROUTINE)]


def test_an_old_event_changes_nothing() -> None:
    """The answer to an own write comes before the watch shows what was before it."""
    cache = Cache()
    cache.resource("MODIFIED", version(9, generation=2))
    assert cache.resource("MODIFIED", version(8, generation=1)) == []
    observed = cache.observe(*RUN)
    assert observed is not None
    assert observed.generation == 2


def test_deleted_and_made_again() -> None:
    cache = Cache()
    cache.resource("ADDED", version(1))
    assert cache.resource("ADDED", version(5, uid="another", status={})) == [(RUN, Priority.URGENT)]
    assert cache.resource("DELETED", version(4)) == [], "the old one's end comes late"
    assert cache.observe(*RUN) is not None
    assert cache.resource("DELETED", version(6, uid="another")) == [(RUN, Priority.ROUTINE)]
    assert cache.observe(*RUN) is None


def test_rivals() -> None:
    """Another resource with the same output is seen until this one is accepted, and wakes it when it goes."""
    cache = Cache()
    cache.resource("ADDED", version(1, name="first", uid="1", status={}))
    cache.resource("ADDED", version(2, status={}))
    observed = cache.observe(*RUN)
    assert observed is not None
    assert [rival["metadata"]["name"] for rival in observed.rivals] == ["first"]
    woken = cache.resource("DELETED", version(3, name="first", uid="1"))
    assert (RUN, Priority.ROUTINE) in woken
    observed = cache.observe(*RUN)
    assert observed is not None
    assert observed.rivals == ()
    moved = version(4, status={})
    moved["spec"]["output"] = {"uri": "gs://bucket/elsewhere"}
    cache.resource("MODIFIED", moved)
    cache.resource("ADDED", version(5, name="third", uid="3", status={}))
    observed = cache.observe(*RUN)
    assert observed is not None
    assert observed.rivals == ()


def test_an_output_that_the_defaults_decide_is_known_once_it_is_resolved() -> None:
    cache = Cache()
    for number, name in enumerate(("first", "second"), start=1):
        open_ = version(number, name=name, uid=name, status={})
        del open_["spec"]["output"]
        cache.resource("ADDED", open_)
    observed = cache.observe(RUN[0], "second")
    assert observed is not None
    assert observed.rivals == (), "nobody's, as long as nothing is known"
    where = version(3, name="first", uid="first", status={"resolved": {"output": {"uri": "gs://bucket/run/"}}})
    del where["spec"]["output"]
    cache.resource("MODIFIED", where)
    asks = version(4, name="third", uid="third", status={})
    asks["spec"]["output"] = {"uri": "gs://bucket/run"}
    cache.resource("ADDED", asks)
    observed = cache.observe(RUN[0], "third")
    assert observed is not None
    assert [rival["metadata"]["name"] for rival in observed.rivals] == ["first"]


def test_jobs_and_pods() -> None:
    cache = Cache()
    cache.resource("ADDED", version(1))
    assert cache.job("ADDED", job(1)) == [(RUN, Priority.ROUTINE)]
    assert cache.job("MODIFIED", job(2)) == [], "nothing that anybody reads has changed"
    assert cache.pod("ADDED", child("Pod", "quotes-t1-x", status={"phase": "Running"})) == [(RUN, Priority.ROUTINE)]
    assert cache.job("MODIFIED", job(3, conditions=COMPLETE)) == [(RUN, Priority.URGENT)]
    observed = cache.observe(*RUN)
    assert observed is not None
    found = observed.jobs["quotes-t1"]
    assert found.complete
    assert [pod.phase for pod in found.pods] == ["Running"]
    assert cache.job("DELETED", job(4, uid="another")) == []
    assert cache.job("DELETED", job(5)) == [(RUN, Priority.URGENT)]
    observed = cache.observe(*RUN)
    assert observed is not None
    assert (dict(observed.jobs), [pod.name for pod in observed.lost_pods]) == ({}, ["quotes-t1-x"])


def test_a_job_of_nobody() -> None:
    stranger = job()
    del stranger["metadata"]["labels"]
    assert Cache().job("ADDED", stranger) == []


def test_a_job_that_only_claims_to_be_the_runs() -> None:
    cache = Cache()
    cache.resource("ADDED", version(1))
    foreign = job()
    foreign["metadata"]["ownerReferences"] = []
    cache.job("ADDED", foreign)
    observed = cache.observe(*RUN)
    assert observed is not None
    assert dict(observed.jobs) == {}


def test_events_tell_why_a_job_waits() -> None:
    """Also those that come before the watch has shown the Job; a Job with a pod needs none."""
    cache = Cache()
    cache.resource("ADDED", version(1))
    assert cache.event(event("uid-quotes-t1", "Scheduled")) == []
    assert cache.event(event("uid-quotes-t1", message="exceeded quota again")) == [(RUN, Priority.ROUTINE)]
    cache.job("ADDED", job())
    observed = cache.observe(*RUN)
    assert observed is not None
    assert [item.message for item in observed.jobs["quotes-t1"].events] == ["exceeded quota again"]
    cache.pod("ADDED", child("Pod", "quotes-t1-x", status={"phase": "Pending"}))
    cache.event(event("uid-quotes-t1-x", "FailedScaleUp", "stockout"))
    observed = cache.observe(*RUN)
    assert observed is not None
    found = observed.jobs["quotes-t1"]
    assert (found.events, [item.reason for item in found.pods[0].events]) == ((), ["FailedScaleUp"])


def test_events_are_kept_for_a_while() -> None:
    cache = Cache()
    cache.resource("ADDED", version(1))
    cache.job("ADDED", job())
    cache.event(event("uid-quotes-t1"))
    for number in range(STORIES):
        cache.event(event(f"another-{number}"))
    observed = cache.observe(*RUN)
    assert observed is not None
    assert observed.jobs["quotes-t1"].events == ()


@pytest.mark.parametrize("kind", ["Job", "Pod", names.KIND])
def test_a_list_drops_what_is_gone(kind: str) -> None:
    """What a watch missed the end of goes; what has come or changed since the list began stays."""
    cache = Cache()
    cache.resource("ADDED", version(1))
    cache.job("ADDED", job())
    cache.pod("ADDED", child("Pod", "quotes-t1-x"))
    before = cache.versions(kind)
    assert len(before) == 1
    assert cache.compare(kind, before, set(before)) == []
    assert cache.compare(kind, dict.fromkeys(before, 0), set()) == [], "it has changed since"
    assert [key for key, _ in cache.compare(kind, before, set())] == [RUN]
    assert cache.versions(kind) == {}


def test_a_live_look_puts_the_cache_right() -> None:
    cache = Cache()
    cache.resource("ADDED", version(1))
    observed = cache.observe(*RUN)
    assert observed is not None
    cache.job("ADDED", job())
    cache.pod("ADDED", child("Pod", "quotes-t1-x"))
    cache.keep_jobs(observed)
    assert (cache.versions("Job"), cache.versions("Pod")) == ({}, {})
