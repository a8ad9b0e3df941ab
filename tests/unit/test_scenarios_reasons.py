"""Every reason of the table, provoked on the embedded cluster by what a cluster does, and where it then stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.names import ConditionType, ExitCode, Reason
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.diagnose import ANSWERS, Answer
from gemmatune_operator.ports import Object, RefusedError
from tests.support.play import NAMESPACE, PREPARED, SPEC, Moody, Play, ended, spec

pytestmark = pytest.mark.usefixtures("both_ways")

C = ConditionType


End = Callable[[Play, str], object]
"""What happens to the running pod of a Job."""


def status(**fields: Any) -> End:
    return lambda play, job: play.pod_status(job, {"phase": "Failed", **fields})


def exits(code: int, reason: str = "") -> End:
    return lambda play, job: play.ends(job, code, "", reason)


def disrupted(reason: str) -> End:
    return status(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": reason}])


def unseen(play: Play, job: str) -> object:
    pod = ended(137, "", "ContainerStatusUnknown", play.now)
    return play.pod_status(job, pod)


ENDS: dict[Reason, End] = {
    Reason.PREEMPTED: disrupted("PreemptionByScheduler"),
    Reason.NODE_LOST: disrupted("DeletionByTaintManager"),
    Reason.POD_REJECTED: status(reason="UnexpectedAdmissionError", message="Allocate failed"),
    Reason.INTERRUPTED: exits(ExitCode.INTERRUPTED),
    Reason.ACCELERATOR_OUT_OF_MEMORY: exits(ExitCode.ACCELERATOR_OUT_OF_MEMORY),
    Reason.HOST_OUT_OF_MEMORY: exits(5, "OOMKilled"),
    Reason.DISK_FULL: exits(ExitCode.DISK_FULL),
    Reason.STALLED: exits(ExitCode.STALLED),
    Reason.KILLED: exits(137),
    Reason.STORAGE_UNAVAILABLE: exits(ExitCode.STORAGE_UNAVAILABLE),
    Reason.HUB_UNAVAILABLE: exits(ExitCode.HUB_UNAVAILABLE),
    Reason.CRASHED: exits(ExitCode.CRASHED),
    Reason.JOB_VANISHED: lambda play, job: play.gone(job),
    Reason.POD_LOST: unseen,
    Reason.RESULT_MISSING: exits(ExitCode.DONE),
    Reason.INVALID_CONFIG: exits(ExitCode.INVALID_CONFIG),
    Reason.ACCESS_DENIED: exits(ExitCode.ACCESS_DENIED),
    Reason.DATA_INVALID: exits(ExitCode.DATA_INVALID),
    Reason.OUTPUT_IN_USE: exits(ExitCode.OUTPUT_IN_USE),
    Reason.LOSS_DIVERGED: exits(ExitCode.LOSS_DIVERGED),
}
ATTEMPTS_UNTIL_FAILED = {Answer.FAIL: 1, Answer.FREE: 2, Answer.COUNTED: 2}
"""With one retry and one preemption allowed; downshifts depend on the plan."""


@pytest.mark.parametrize("reason", ENDS, ids=str)
def test_an_attempt_ends_by(reason: Reason) -> None:
    play = Play(spec(limits={"maxRetries": 1, "maxPreemptions": 1}))
    play.prepared()
    for number in range(1, 9):
        play.runs(f"quotes-t{number}")
        ENDS[reason](play, f"quotes-t{number}")
        assert play.status.attempts[number - 1].reason == reason
        if play.status.phase == "Failed":
            break
        assert play.condition(C.TRAINING) in {("False", "Retrying"), ("False", "Provisioning")}
        play.wait(600)
    assert (play.status.reason, play.condition(C.FINISHED)) == (reason, ("True", reason))
    assert play.status.message
    assert play.status.remedy
    if (answer := ANSWERS[reason]) in ATTEMPTS_UNTIL_FAILED:
        assert len(play.status.attempts) == ATTEMPTS_UNTIL_FAILED[answer]
        counters = play.status.counters
        assert counters is not None
        assert (counters.retries, counters.preemptions) == (answer is Answer.COUNTED, answer is Answer.FREE)


def waiting(reason: str, message: str = "") -> Callable[[Play, str], object]:
    state = {"waiting": {"reason": reason, "message": message}}
    pod = {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": state}]}
    return lambda play, job: play.pod_status(job, pod)


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}


def unscheduled(play: Play, job: str) -> object:
    return play.pod_status(job, {"phase": "Pending", "conditions": [UNSCHEDULED]})


def no_capacity(play: Play, job: str) -> object:
    unscheduled(play, job)
    return play.event(play.pod(job), "FailedScaleUp", "Node scale up failed: GCE out of resources")


WAITS: dict[Reason, Callable[[Play, str], object]] = {
    Reason.IMAGE_PULL_FAILED: waiting("ImagePullBackOff", "Back-off pulling image"),
    Reason.SECRET_MISSING: waiting("CreateContainerConfigError", 'secret "hf-token" not found'),
    Reason.UNSCHEDULABLE: unscheduled,
    Reason.CAPACITY_UNAVAILABLE: no_capacity,
}


@pytest.mark.parametrize("reason", WAITS, ids=str)
def test_a_preparation_and_an_attempt_wait_for(reason: Reason) -> None:
    play = Play()
    play.look()
    WAITS[reason](play, "quotes-p1")
    assert (play.status.phase, play.status.reason) == ("Preparing", reason)
    play.runs("quotes-p1")
    assert play.status.reason == "Preparing", "it goes on by itself"
    play.prepared()
    WAITS[reason](play, "quotes-t1")
    assert (play.status.phase, play.status.reason) == ("Provisioning", reason)
    assert play.status.remedy
    assert len(play.status.attempts) == 1
    assert play.runs("quotes-t1").phase == "Training", "it goes on by itself"


QUOTA = 'pods "quotes" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'
HOOK = 'admission webhook "policy.example.com" denied the request'


@pytest.mark.parametrize(("message", "reason"), [(QUOTA, Reason.QUOTA_EXCEEDED), (HOOK, Reason.POLICY_DENIED)])
def test_a_pod_is_not_admitted(message: str, reason: Reason) -> None:
    play = Play()
    for job, phase in (("quotes-p1", "Preparing"), ("quotes-t1", "Provisioning")):
        play.makes_pods = job != "quotes-p1"
        play.look() if job == "quotes-p1" else play.prepared()
        play.makes_pods = False
        if job == "quotes-t1":
            play.store.remove("Pod", NAMESPACE, play.pod(job)["metadata"]["name"])
        assert play.event(play.job(job), "FailedCreate", message).reason == reason
        assert (play.status.phase, play.status.message) == (phase, message)
        play.makes_pods = True
        play.wait(60)
        assert play.runs(job).reason in ("Preparing", "Running"), "it goes on by itself"


def test_a_creation_is_refused() -> None:
    play = Play()
    steady = play.cluster
    refusing = Moody(steady, lambda name: RefusedError("no such thing") if name == "create" else None)
    for phase in ("Preparing", "Provisioning"):
        play.cluster = refusing  # type: ignore[assignment]
        play.look() if phase == "Preparing" else play.ends("quotes-p1", 0, PREPARED)
        assert (play.status.phase, play.status.reason) == (phase, Reason.POLICY_DENIED)
        assert "no such thing" in play.status.message
        play.cluster = steady
        play.wait(60)
        assert play.status.reason in ("Preparing", "Provisioning"), "it goes on by itself"


@pytest.mark.parametrize(
    ("labels", "reason"), [({}, Reason.NAME_CONFLICT), ({names.LABEL_RUN_UID: "old"}, Reason.WAITING_FOR_CLEANUP)]
)
def test_the_name_of_an_attempt_is_taken(labels: dict[str, str], reason: Reason) -> None:
    play = Play()
    owners = [{"kind": "X", "name": "x", "uid": "old", "controller": True}]
    meta = {"name": "quotes-t1", "namespace": NAMESPACE, "labels": labels, "ownerReferences": owners}
    foreign = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"template": {"spec": {}}}}
    play.store.create(foreign)
    play.prepared()
    assert (play.status.phase, play.status.reason) == ("Provisioning", reason)
    play.gone("quotes-t1")
    play.wait(60)
    assert play.runs("quotes-t1").phase == "Training", "it goes on by itself"


def test_a_preparation_is_retried_and_fails() -> None:
    play = Play()
    play.look()
    for number in range(1, 4):
        assert play.ends(f"quotes-p{number}", ExitCode.HUB_UNAVAILABLE).reason == "Retrying"
        assert play.wait(600).phase == "Preparing"
    play.ends("quotes-p4", ExitCode.HUB_UNAVAILABLE)
    assert (play.status.phase, play.status.reason) == ("Failed", Reason.HUB_UNAVAILABLE)


REFUSED: dict[Reason, Object] = {
    Reason.INVALID_SPEC: {"training": {"maxSteps": 0}},
    Reason.NOT_SUPPORTED_YET: {
        "accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "4x4"}},
        "lora": {},
    },
    Reason.DOES_NOT_FIT: {
        "model": {"uri": "hf://google/gemma-2-27b"},
        "accelerator": {"gpu": {"type": "nvidia-tesla-t4"}},
    },
}


@pytest.mark.parametrize("reason", REFUSED, ids=str)
def test_a_spec_is_refused(reason: Reason) -> None:
    play = Play(spec(**REFUSED[reason]))
    assert (play.look().phase, play.status.reason) == ("Failed", reason)
    assert play.status.remedy
    assert play.jobs() == []
    assert (
        play.change(lambda wrong: [wrong.pop(name) for name in REFUSED[reason]] and wrong.update(SPEC)).phase
        == "Preparing"
    )


def suspends(play: Play, job: str, suspended: bool) -> None:
    """Kueue takes a Job's admission back, or gives it."""
    play.store.write_spec("Job", NAMESPACE, job, {**play.job(job)["spec"], "suspend": suspended})
    play.look()


def test_a_queue_holds_and_evicts() -> None:
    play = Play(spec(limits={"maxPreemptions": 1}))
    play.look()
    suspends(play, "quotes-p1", True)
    assert (play.status.phase, play.status.reason) == ("Preparing", Reason.QUEUED)
    suspends(play, "quotes-p1", False)
    play.prepared()
    for number in (1, 2):
        job = f"quotes-t{number}"
        suspends(play, job, True)
        assert play.status.reason == Reason.QUEUED
        suspends(play, job, False)
        assert play.runs(job).phase == "Training"
        suspends(play, job, True)
        if job in play.jobs():
            play.ends(job, ExitCode.INTERRUPTED)
            play.gone(job)
        assert play.status.attempts[number - 1].reason == Reason.EVICTED_BY_QUEUE
        play.wait(600)
    assert (play.status.phase, play.status.reason) == ("Failed", Reason.EVICTED_BY_QUEUE)


def test_a_preparation_waits_for_access() -> None:
    play = Play()
    play.look()
    state = {"running": {"startedAt": rfc3339(play.now)}}
    refused = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "trainer", "ready": False, "state": state}],
    }
    assert play.pod_status("quotes-p1", refused).reason == "Preparing", "its kubelet has not asked it yet"
    play.wait(90)
    assert (play.status.phase, play.status.reason) == ("Preparing", Reason.WAITING_FOR_ACCESS)
    assert play.status.remedy
    assert play.runs("quotes-p1").reason == "Preparing", "it goes on by itself"
