"""Causes: the whole table, its precedence, and that no pod status is too odd."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import EXIT_REASONS, REASONS, ExitCode, Reason
from gemmatune_operator import diagnose
from gemmatune_operator.diagnose import ANSWERS, Answer
from gemmatune_operator.observe import of_resource
from gemmatune_operator.views import EventView, JobView, events_of, job_view, machine_of, pod_view
from tests.support.situations import NOW, ended_pod, failed_job, job, pod

FAILED = {"failed": True, "failure_target": True, "active": 0}

ENDS = [
    (ended_pod(137, disruption="EvictionByEvictionAPI"), Reason.PREEMPTED),
    (ended_pod(30, disruption="PreemptionByScheduler"), Reason.PREEMPTED),
    (ended_pod(12, disruption="TerminationByKubelet"), Reason.PREEMPTED),
    (ended_pod(137, disruption="DeletionByTaintManager"), Reason.NODE_LOST),
    (ended_pod(None, disruption="DeletionByPodGC"), Reason.NODE_LOST),
    (ended_pod(137, disruption="X", termination_reason="OOMKilled"), Reason.PREEMPTED),
    (ended_pod(137, termination_reason="OOMKilled"), Reason.HOST_OUT_OF_MEMORY),
    (ended_pod(5, termination_reason="OOMKilled"), Reason.HOST_OUT_OF_MEMORY),
    (ended_pod(20, termination_reason="OOMKilled"), Reason.HOST_OUT_OF_MEMORY),
    (ended_pod(137, reason="Evicted", message="Usage of EmptyDir volume cache exceeds the limit"), Reason.DISK_FULL),
    (ended_pod(None, reason="Evicted"), Reason.DISK_FULL),
    (ended_pod(137, termination_reason="ContainerStatusUnknown"), Reason.POD_LOST),
    (ended_pod(None, started=NOW), Reason.POD_LOST),
    (ended_pod(137), Reason.KILLED),
    (ended_pod(ExitCode.CRASHED), Reason.CRASHED),
    (ended_pod(139), Reason.CRASHED),
    (ended_pod(ExitCode.INVALID_CONFIG), Reason.INVALID_CONFIG),
    (ended_pod(ExitCode.ACCESS_DENIED), Reason.ACCESS_DENIED),
    (ended_pod(ExitCode.DATA_INVALID), Reason.DATA_INVALID),
    (ended_pod(ExitCode.DISK_FULL), Reason.DISK_FULL),
    (ended_pod(ExitCode.OUTPUT_IN_USE), Reason.OUTPUT_IN_USE),
    (ended_pod(ExitCode.ACCELERATOR_OUT_OF_MEMORY), Reason.ACCELERATOR_OUT_OF_MEMORY),
    (ended_pod(ExitCode.LOSS_DIVERGED), Reason.LOSS_DIVERGED),
    (ended_pod(ExitCode.INTERRUPTED), Reason.INTERRUPTED),
    (ended_pod(ExitCode.STALLED), Reason.STALLED),
    (ended_pod(ExitCode.STORAGE_UNAVAILABLE), Reason.STORAGE_UNAVAILABLE),
    (ended_pod(ExitCode.HUB_UNAVAILABLE), Reason.HUB_UNAVAILABLE),
    (ended_pod(None, reason="UnexpectedAdmissionError"), Reason.POD_REJECTED),
    (ended_pod(None, reason="OutOfcpu"), Reason.POD_REJECTED),
    (ended_pod(None, reason="NodeShutdown"), Reason.POD_REJECTED),
    (ended_pod(None, reason="NodeShutdown", deleted=NOW), Reason.POD_REJECTED),
    (ended_pod(None, message="nobody says why"), Reason.POD_REJECTED),
    (ended_pod(None, deleted=NOW), Reason.POD_LOST),
]


@pytest.mark.parametrize(("view", "reason"), ENDS, ids=[f"{p.exit_code}-{r}-{i}" for i, (p, r) in enumerate(ENDS)])
def test_every_end_of_a_pod(view: Any, reason: Reason) -> None:
    found = diagnose.ended(job("quotes-t1", view, **FAILED))
    assert found is not None
    assert found.reason is reason
    assert found.message
    assert found.remedy


def test_every_exit_code_is_in_the_table() -> None:
    reasons = {diagnose.ended(failed_job(code)).reason for code in ExitCode if code is not ExitCode.DONE}  # type: ignore[union-attr]
    assert reasons == set(EXIT_REASONS.values())


def test_failure_target_is_enough() -> None:
    open_job = job("quotes-t1", ended_pod(12))
    assert diagnose.ended(open_job) is None
    early = job("quotes-t1", ended_pod(12), failure_target=True)
    assert diagnose.ended(early).reason is Reason.DATA_INVALID  # type: ignore[union-attr]


def test_the_trainers_words() -> None:
    words = {"reason": "DataInvalid", "message": "row 7 has no text", "remedy": "Fix row 7.", "step": 12}
    found = diagnose.ended(failed_job(12, termination_message=json.dumps(words)))
    assert found is not None
    assert (found.message, found.remedy, found.step) == ("row 7 has no text", "Fix row 7.", 12)


def test_the_last_line_of_a_log() -> None:
    log = "Traceback ...\n  File x\nValueError: no such thing\n\n"
    found = diagnose.ended(failed_job(1, termination_message=log))
    assert found is not None
    assert found.message == "The trainer ended with exit code 1: ValueError: no such thing"


def test_no_words_at_all() -> None:
    found = diagnose.ended(failed_job(11))
    assert found is not None
    assert REASONS[Reason.ACCESS_DENIED].meaning in found.message
    assert found.remedy == REASONS[Reason.ACCESS_DENIED].remedy


def test_the_first_pod_to_end_counts() -> None:
    first = ended_pod(20, name="b", finished=NOW)
    second = ended_pod(1, name="a", finished=NOW + timedelta(seconds=2))
    unknown = ended_pod(12, name="c")
    found = diagnose.ended(job("quotes-t1", second, unknown, first, **FAILED))
    assert found is not None
    assert found.reason is Reason.ACCELERATOR_OUT_OF_MEMORY


def first_of(*pods: Any, message: str = "") -> Reason:
    found = diagnose.ended(job("quotes-t1", *pods, failure_message=message, **FAILED))
    assert found is not None
    return found.reason


def test_within_one_second_the_named_pod_is_the_first() -> None:
    """Times are whole seconds: deleted pods are victims, and the Job's message names the culprit."""
    culprit = ended_pod(20, name="z", finished=NOW)
    victim = ended_pod(30, name="a", finished=NOW, deleted=NOW)
    other = ended_pod(1, name="b", finished=NOW)
    assert first_of(victim, culprit) is Reason.ACCELERATOR_OUT_OF_MEMORY
    message = "Container trainer for pod ns/z failed with exit code 20 matching FailJob rule at index 1"
    assert first_of(other, victim, culprit, message=message) is Reason.ACCELERATOR_OUT_OF_MEMORY
    assert first_of(other, victim, culprit) is Reason.CRASHED


def test_a_disruption_counts_from_its_own_time() -> None:
    """The pods beside a lost one crash first, but it was disrupted before them; and the other way round."""
    crashed = ended_pod(1, name="a", finished=NOW)
    lost = pod(name="z", disruption="TerminationByKubelet", disrupted=NOW - timedelta(seconds=3), deleted=NOW)
    assert first_of(crashed, lost) is Reason.PREEMPTED
    drained = pod(name="z", disruption="EvictionByEvictionAPI", disrupted=NOW + timedelta(seconds=3))
    assert first_of(crashed, drained) is Reason.CRASHED


def test_a_deleted_job_takes_its_pod_along() -> None:
    """Somebody deletes the Job: how its pod then stops is no cause of its own; what failed before it is."""
    for view, reason in (
        (ended_pod(30), Reason.JOB_VANISHED),
        (ended_pod(137), Reason.JOB_VANISHED),
        (ended_pod(12), Reason.DATA_INVALID),
        (ended_pod(143, disruption="EvictionByEvictionAPI"), Reason.PREEMPTED),
    ):
        found = diagnose.ended(job("quotes-t1", view, deleting=True, **FAILED))
        assert found is not None
        assert found.reason is reason


SIGNS = [
    (job("quotes-t1", pod()), None),
    (job("quotes-t1"), None),
    (job("quotes-t1", pod(), deleting=True), Reason.JOB_VANISHED),
    (job("quotes-t1", pod(disruption="EvictionByEvictionAPI")), Reason.PREEMPTED),
    (job("quotes-t1", pod(disruption="DeletionByTaintManager", deleted=NOW)), Reason.NODE_LOST),
    (job("quotes-t1", pod(deleted=NOW)), Reason.INTERRUPTED),
    (job("quotes-t1", pod(deleted=NOW), suspended=True), None),
    (job("quotes-t1", ended_pod(30, deleted=NOW)), None),
    (job("quotes-t1", pod(name="b"), pod(name="a", deleted=NOW)), Reason.INTERRUPTED),
]


@pytest.mark.parametrize(("view", "reason"), SIGNS, ids=[f"{r}-{i}" for i, (_, r) in enumerate(SIGNS)])
def test_signs_of_an_end(view: JobView, reason: Reason | None) -> None:
    found = diagnose.ending(view)
    assert (found.reason if found else None) == reason


def test_success_carries_the_manifest() -> None:
    message = TerminationMessage(message="done", step=100, manifest="gs://b/manifest.json").model_dump_json()
    found = diagnose.ended(job("quotes-t1", ended_pod(0, termination_message=message), complete=True))
    assert found is not None
    assert found.answer is Answer.SUCCEED
    assert found.step == 100
    assert found.said is not None
    assert found.said.manifest == "gs://b/manifest.json"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Container trainer for pod ns/quotes-t1-x failed with exit code 20 matching FailJob rule at index 1", "20"),
        ("Pod ns/quotes-t1-x has condition DisruptionTarget matching FailJob rule at index 0", "Preempted"),
        ("Job has reached the specified backoff limit", "PodLost"),
    ],
)
def test_the_jobs_message_survives_the_pod(message: str, reason: str) -> None:
    expected = Reason.ACCELERATOR_OUT_OF_MEMORY if reason == "20" else Reason(reason)
    found = diagnose.ended(job("quotes-t1", failure_reason="PodFailurePolicy", failure_message=message, **FAILED))
    assert found is not None
    assert found.reason is expected


def test_the_jobs_own_deadline_comes_first() -> None:
    late = job("quotes-t1", ended_pod(30), failure_reason="DeadlineExceeded", **FAILED)
    assert diagnose.ended(late).reason is Reason.DEADLINE_EXCEEDED  # type: ignore[union-attr]


def pending(**fields: Any) -> JobView:
    return job("quotes-t1", pod(phase="Pending", **fields))


def event(reason: str, message: str, seconds: int = 0) -> EventView:
    return EventView(reason, message, NOW + timedelta(seconds=seconds))


QUOTA = 'Error creating: pods "x" is forbidden: exceeded quota: none, requested: pods=1'
WAITS = [
    (pending(waiting_reason="ImagePullBackOff", waiting_message="not found"), Reason.IMAGE_PULL_FAILED),
    (pending(waiting_reason="InvalidImageName"), Reason.IMAGE_PULL_FAILED),
    (
        pending(waiting_reason="CreateContainerConfigError", waiting_message='secret "hf-token" not found'),
        Reason.SECRET_MISSING,
    ),
    (
        pending(waiting_reason="CreateContainerConfigError", waiting_message="couldn't find key HF_TOKEN in Secret x"),
        Reason.SECRET_MISSING,
    ),
    (
        pending(waiting_reason="CreateContainerConfigError", waiting_message='configmap "x" not found'),
        Reason.PROVISIONING,
    ),
    (pending(events=(event("FailedMount", 'secret "x" not found'),)), Reason.SECRET_MISSING),
    (
        pending(events=(event("FailedMount", 'secret "x" not found'),), mounted=True),
        Reason.PROVISIONING,
    ),
    (pending(events=(event("FailedAttachVolume", "busy"),)), Reason.PROVISIONING),
    (
        pending(
            scheduled=False,
            events=(event("FailedScaleUp", "GCE out of resources"), event("TriggeredScaleUp", "pool 0->1", 5)),
            unscheduled_message="0/3",
        ),
        Reason.PROVISIONING,
    ),
    (pending(scheduled=False, unscheduled_message="0/3 nodes are available"), Reason.UNSCHEDULABLE),
    (
        pending(scheduled=False, events=(event("FailedScaleUp", "GCE out of resources"),), unscheduled_message="0/3"),
        Reason.CAPACITY_UNAVAILABLE,
    ),
    (
        pending(scheduled=False, events=(event("TriggeredScaleUp", "pool 0->1"),), unscheduled_message="0/3"),
        Reason.PROVISIONING,
    ),
    (
        pending(scheduled=False, events=(event("FailedScaleUp", "no such pool"),), unscheduled_message="0/3"),
        Reason.UNSCHEDULABLE,
    ),
    (
        pending(
            scheduled=False,
            events=(event("TriggeredScaleUp", "pool 0->1"), event("FailedScaleUp", "no such pool", 9)),
            unscheduled_message="0/3",
        ),
        Reason.UNSCHEDULABLE,
    ),
    (pending(scheduled=False), Reason.PROVISIONING),
    (pending(waiting_reason="ContainerCreating"), Reason.PROVISIONING),
    (job("quotes-t1", events=(event("FailedCreate", QUOTA),)), Reason.QUOTA_EXCEEDED),
    (job("quotes-t1", events=(event("FailedCreate", "violates PodSecurity"),)), Reason.POLICY_DENIED),
    (job("quotes-t1"), Reason.PROVISIONING),
]


@pytest.mark.parametrize(("view", "reason"), WAITS, ids=[f"{r}-{i}" for i, (_, r) in enumerate(WAITS)])
def test_every_wait(view: JobView, reason: Reason) -> None:
    found = diagnose.waiting(view)
    assert found.reason is reason
    assert found.message


def test_a_wait_that_needs_somebody_is_not_ordinary() -> None:
    assert diagnose.waiting(pending()).ordinary
    for view in (
        pending(waiting_reason="CreateContainerConfigError", waiting_message='configmap "x" not found'),
        pending(events=(event("FailedMount", 'configmap "x" not found'),)),
    ):
        found = diagnose.waiting(view)
        assert not found.ordinary
        assert 'configmap "x" not found' in found.message


def test_a_job_that_tries_again_is_no_news() -> None:
    """Only the pod's random name differs."""
    tries = [
        f'Error creating: pods "quotes-t1-{name}" is forbidden: exceeded quota: x' for name in ("rmhvn", "0-lshg2")
    ]
    told = {diagnose.waiting(job("quotes-t1", events=(event("FailedCreate", text),))).message for text in tries}
    assert told == {'Error creating: pods "quotes-t1-…" is forbidden: exceeded quota: x'}


def test_the_newest_event_tells() -> None:
    old, new = event("FailedCreate", "violates PodSecurity"), event("FailedCreate", QUOTA, 5)
    raw = [
        {"reason": e.reason, "message": e.message, "lastTimestamp": e.last.isoformat() if e.last else ""}
        for e in (new, old)
    ]
    view = job("quotes-t1", events=events_of(raw))
    assert diagnose.waiting(view).reason is Reason.QUOTA_EXCEEDED


def test_failed_is_enough_too() -> None:
    assert diagnose.ended(job("quotes-t1", ended_pod(12), failed=True)).reason is Reason.DATA_INVALID  # type: ignore[union-attr]


def test_a_pod_tells_before_its_phase_does() -> None:
    for view, reason in (
        (pod(disruption="EvictionByEvictionAPI"), Reason.PREEMPTED),
        (pod(exit_code=12), Reason.DATA_INVALID),
        (pod(), Reason.POD_LOST),
    ):
        assert diagnose.ended(job("quotes-t1", view, **FAILED)).reason is reason  # type: ignore[union-attr]


def test_messages_name_pod_node_and_detail() -> None:
    def told(**fields: Any) -> str:
        found = diagnose.ended(job("quotes-t1", ended_pod(fields.pop("code", None), **fields), **FAILED))
        assert found is not None
        return found.message

    assert told(disruption="X", disruption_message="drained") == (
        "The pod quotes-t1-abcde on node n1 was disrupted (X): drained"
    )
    drained = told(disruption="EvictionByEvictionAPI", disruption_message="by hand")
    assert drained.endswith("(EvictionByEvictionAPI): it was evicted, as when a node is drained; by hand")
    assert told(disruption="X", node="") == "The pod quotes-t1-abcde on node unknown was disrupted (X)"
    assert told(reason="Evicted", message="too much disk").endswith("was evicted: too much disk")
    assert told(reason="Evicted").endswith("was evicted: no message")
    assert told(reason="OutOfcpu", message="no cpu").endswith("never ran, the node refused it: OutOfcpu no cpu")
    assert told().endswith("never ran, the node refused it: no reason given")


def test_sentences() -> None:
    assert diagnose.cause(Reason.KILLED).message == REASONS[Reason.KILLED].meaning
    assert diagnose.cause(Reason.KILLED, "it died").sentence == "it died."
    for whole in ("It died.", "It died!", "Did it die?", "cut off…"):
        assert diagnose.cause(Reason.KILLED, f"{whole}\n").sentence == whole


def test_every_cause_has_an_answer() -> None:
    """All causes of operator.md's table, and nothing that is no cause."""
    causes = list(Reason)[: list(Reason).index(Reason.INVALID_SPEC)]
    assert set(causes) <= set(ANSWERS)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=12,
)
KEYS = [
    "phase", "reason", "message", "conditions", "containerStatuses", "state", "terminated", "waiting", "exitCode",
    "type", "status", "lastState", "finishedAt", "startedAt", "name", "running", "lastTimestamp",
    "deletionTimestamp", "lastTransitionTime", "suspend", "nodeName",
]  # fmt: skip
NESTED = st.recursive(
    ODD | st.sampled_from(["True", "Failed", "trainer", "DisruptionTarget", "Complete", "2026-03-01T12:00:00Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(pod_status=NESTED, job_status=NESTED, meta=NESTED, node=NESTED)
def test_nothing_is_too_odd(pod_status: Any, job_status: Any, meta: Any, node: Any) -> None:
    """Whatever stands in the objects, there is a cause or none, and no exception."""
    view = pod_view({"metadata": meta, "spec": node, "status": pod_status})
    one = job_view({"metadata": meta, "spec": node, "status": job_status}, (view,))
    for candidate in (one, job("quotes-t1", view, **FAILED), job("quotes-t1", view, complete=True)):
        for found in (diagnose.ended(candidate), diagnose.ending(candidate)):
            assert found is None or isinstance(found.reason, Reason)
        assert diagnose.waiting(candidate).message is not None
    machine_of({"status": node})
    events_of([{"reason": meta, "lastTimestamp": node}])
    of_resource({"metadata": meta, "status": job_status})


def test_of_several_pods_the_telling_one() -> None:
    """The one that waits, while another runs; the one that succeeded, after another failed."""
    waits = pod(name="b", phase="Pending", scheduled=False, unscheduled_message="0/3 nodes")
    assert diagnose.waiting(job("quotes-t1", pod(), waits)).reason is Reason.UNSCHEDULABLE
    words = json.dumps({"message": "done", "manifest": "gs://b/manifest.json"})
    done = job("quotes-t1", ended_pod(1), ended_pod(0, name="b", termination_message=words), complete=True)
    found = diagnose.ended(done)
    assert found is not None
    assert found.said is not None
    assert found.said.manifest == "gs://b/manifest.json"


def test_only_events_that_tell_are_looked_at() -> None:
    full, other = event("FailedScaleUp", "out of resources", 1), event("Pulled", "image pulled", 2)
    view = pending(scheduled=False, events=(full, other))
    assert diagnose.waiting(view).reason is Reason.CAPACITY_UNAVAILABLE


def test_a_pod_that_left_nothing() -> None:
    silent = diagnose.ended(job("quotes-t1", failed=True, failure_reason="", active=0))
    assert silent is not None
    assert silent.message.endswith("without a final state.")
    told = diagnose.ended(job("quotes-t1", failed=True, failure_reason="Odd", failure_message="it is", active=0))
    assert told is not None
    assert told.message.endswith("without a final state (Odd: it is).")
