"""Runs with output.merge on the embedded cluster: after training a CPU Job merges, and only it is tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.status import FineTuneStatus
from gemmatune_operator.diagnose import ANSWERS, Answer
from gemmatune_operator.ports import Object
from gemmatune_operator.reconcile import reconcile
from tests.support.play import NAMESPACE, SPEC, Play
from tests.unit.test_scenarios_reasons import ENDS, HOOK, QUOTA, WAITS

C = ConditionType
ADAPTER = "gs://bucket/quotes/adapter"
MERGED = {"adapter": ADAPTER, "merged": "gs://bucket/quotes/merged"}
TRAINED = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}
DONE = {"message": "merged", "manifest": "gs://bucket/quotes/merged/manifest.json"}


def run(**blocks: Any) -> Play:
    """A run that will merge."""
    return Play({**SPEC, "output": {**SPEC["output"], "merge": True}, **blocks})


def merging(**blocks: Any) -> Play:
    """Comes to a merge whose Job is created."""
    play = run(**blocks)
    play.training()
    play.trainer(progress={"step": 100}, artifacts={"adapter": ADAPTER})
    play.ends("quotes-t1", 0, TRAINED)
    return play


@pytest.fixture
def play() -> Play:
    return merging()


def record(status: FineTuneStatus) -> tuple[int, str, int, int]:
    found = status.merge
    assert found is not None
    return found.number, found.job, found.retries, found.preemptions


def limits(play: Play, job: str) -> Object:
    container = play.job(job)["spec"]["template"]["spec"]["containers"][0]
    return dict(container["resources"]["limits"])


def test_to_success(play: Play) -> None:
    assert (play.status.phase, play.status.reason) == ("Merging", "Merging")
    assert record(play.status) == (1, "quotes-m1", 0, 0)
    assert play.status.job == "quotes-m1", "the admission policy lets the merge pod write"
    assert play.condition(C.SUCCEEDED) == ("False", "Merging")
    assert play.condition(C.FINISHED) is None
    assert play.runs("quotes-m1").phase == "Merging"
    assert "writes 16-bit weights on localhost" in play.status.message
    play.trainer(progress={"step": 100}, artifacts=MERGED)
    status = play.ends("quotes-m1", 0, DONE)
    assert (status.phase, status.reason) == ("Succeeded", "Completed")
    assert "gs://bucket/quotes/merged." in status.message
    assert play.condition(C.FINISHED) == ("True", "Completed")
    assert play.jobs() == ["quotes-m1", "quotes-p1", "quotes-t1"]
    ends = ["Running", "Provisioning", "Completed", "Merging", "Running", "Completed"]
    assert play.events()[4:] == ends
    assert all(len(pods) == 1 for pods in play.pods_by_job.values())
    version = play.store.version
    play.wait(86_400)
    assert play.store.version == version, "a finished run is left in peace"


def test_the_pod_of_a_merge(play: Play) -> None:
    pod = play.job("quotes-m1")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"][-1] == "merge"
    assert "nodeSelector" not in pod
    assert pod["automountServiceAccountToken"] is True
    config = RunConfig.from_env(next(item["value"] for item in container["env"] if item["name"] == names.ENV_RUN))
    assert (config.attempt, config.device) == (1, "cpu")
    planned = play.status.plan.merge  # type: ignore[union-attr]
    assert planned is not None
    assert 5 * 2**30 < planned.memory < 20 * 2**30, "gemma-2-2b in 16 bit"


@pytest.mark.parametrize("reason", WAITS, ids=str)
def test_a_merge_waits_for(reason: Reason, play: Play) -> None:
    WAITS[reason](play, "quotes-m1")
    assert (play.status.phase, play.status.reason) == ("Merging", reason)
    assert play.status.remedy
    assert play.runs("quotes-m1").reason == "Merging", "it goes on by itself"
    assert record(play.status) == (1, "quotes-m1", 0, 0)


@pytest.mark.parametrize(("message", "reason"), [(QUOTA, Reason.QUOTA_EXCEEDED), (HOOK, Reason.POLICY_DENIED)])
def test_the_pod_of_a_merge_is_not_admitted(message: str, reason: Reason, play: Play) -> None:
    play.makes_pods = False
    play.store.remove("Pod", NAMESPACE, play.pod("quotes-m1")["metadata"]["name"])
    assert play.event(play.job("quotes-m1"), "FailedCreate", message).reason == reason
    assert (play.status.phase, play.status.message) == ("Merging", message)
    play.makes_pods = True
    play.wait(60)
    assert play.runs("quotes-m1").reason == "Merging", "it goes on by itself"


@pytest.mark.parametrize(
    ("labels", "reason"), [({}, Reason.NAME_CONFLICT), ({names.LABEL_RUN_UID: "old"}, Reason.WAITING_FOR_CLEANUP)]
)
def test_the_name_of_a_merge_is_taken(labels: dict[str, str], reason: Reason) -> None:
    play = run()
    owners = [{"kind": "X", "name": "x", "uid": "old", "controller": True}]
    meta = {"name": "quotes-m1", "namespace": NAMESPACE, "labels": labels, "ownerReferences": owners}
    play.store.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"template": {"spec": {}}}})
    play.training()
    play.ends("quotes-t1", 0, TRAINED)
    assert (play.status.phase, play.status.reason) == ("Merging", reason)
    play.gone("quotes-m1")
    play.wait(60)
    assert play.runs("quotes-m1").reason == "Merging", "it goes on by itself"


@pytest.mark.parametrize("reason", ENDS, ids=str)
def test_a_merge_ends_by(reason: Reason, play: Play) -> None:
    free = ANSWERS[reason] is Answer.FREE
    play.change(lambda spec: spec.update(limits={"maxPreemptions": 1}))
    for number in range(1, 6):
        play.runs(f"quotes-m{number}")
        ENDS[reason](play, f"quotes-m{number}")
        if play.status.phase == "Failed":
            break
        assert play.status.phase == "Merging"
        found = play.status.merge
        assert found is not None
        assert (found.retries, found.preemptions) == ((0, number) if free else (number, 0))
        play.wait(600)
    assert (play.status.reason, play.condition(C.FINISHED)) == ("MergeFailed", ("True", "MergeFailed"))
    assert number == (1 if ANSWERS[reason] is Answer.FAIL else 2 if free else 4)
    assert f"The merge ended with {reason}: " in play.status.message
    assert f"The adapter is whole: {ADAPTER}." in play.status.message
    again = "only the merge is tried again" in play.status.remedy
    assert again is (reason is not Reason.OUTPUT_IN_USE)
    assert len(play.status.attempts) == 1, "training is never repeated"


def test_what_its_pod_waits_for_is_told(play: Play) -> None:
    status = play.pod_status("quotes-m1", {"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}]})  # fmt: skip
    assert (status.phase, status.reason) == ("Merging", "Unschedulable")
    assert "0/2 nodes" in status.message
    assert "status.plan.merge" in status.remedy
    assert play.condition(C.SUCCEEDED) == ("False", "Merging")
    status = play.wait(24 * 3600 + 1)
    assert (status.phase, status.reason) == ("Failed", "MergeFailed")
    assert "limits.pendingDeadline" in status.message
    assert play.job("quotes-m1")["metadata"].get("deletionTimestamp")


def test_preemptions_are_free(play: Play) -> None:
    for number in range(1, 8):
        play.runs(f"quotes-m{number}")
        status = play.ends(f"quotes-m{number}", 30)
        assert record(status) == (number + 1, f"quotes-m{number + 1}", 0, number)
        assert status.job == f"quotes-m{number + 1}"
    assert play.status.counters.retries == 0  # type: ignore[union-attr]
    assert len(play.status.attempts) == 1


def test_failures_count_back_off_and_end_with_the_adapter(play: Play) -> None:
    for number in (1, 2, 3):
        play.runs(f"quotes-m{number}")
        status = play.ends(f"quotes-m{number}", 1, "Traceback\nValueError: odd")
        assert (status.phase, status.reason) == ("Merging", "Retrying")
        assert f"retry {number} of 3, preemptions 0 of 20" in status.message
        assert "ValueError: odd" in status.message
        assert record(status) == (number + 1, f"quotes-m{number + 1}", number, 0)
        assert f"quotes-m{number + 1}" not in play.jobs()
        assert play.wake is not None
        assert play.wake > 5
        play.wait(play.wake + 1)
    status = play.ends("quotes-m4", 1)
    assert (status.phase, status.reason) == ("Failed", "MergeFailed")
    assert f"The adapter is whole: {ADAPTER}." in status.message
    assert "only the merge is tried again" in status.remedy
    assert play.condition(C.SUCCEEDED) == ("False", "MergeFailed")
    assert play.condition(C.FINISHED) == ("True", "MergeFailed")


def test_the_retry_annotation_tries_only_the_merge_again(play: Play) -> None:
    play.runs("quotes-m1")
    play.ends("quotes-m1", 12, {"message": "the adapter is damaged", "remedy": "Restore it."})
    assert (play.status.phase, play.status.reason) == ("Failed", "MergeFailed")
    assert "the adapter is damaged" in play.status.message
    assert play.status.remedy.startswith("Restore it. Then set the annotation gemmatune.dev/retry")
    status = play.annotate("again")
    assert (status.phase, record(status)) == ("Merging", (2, "quotes-m2", 0, 0))
    assert status.job == "quotes-m2"
    assert play.jobs() == ["quotes-m1", "quotes-m2", "quotes-p1", "quotes-t1"]
    play.runs("quotes-m2")
    play.trainer(artifacts=MERGED)
    assert play.ends("quotes-m2", 0, DONE).phase == "Succeeded"
    assert len(play.status.attempts) == 1


def test_more_memory_after_it_ran_out(play: Play) -> None:
    play.store.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "localhost"}})
    play.store.write_status("Node", "", "localhost", {"allocatable": {"memory": "400Gi"}})
    play.runs("quotes-m1")
    play.ends("quotes-m1", 137, "", "OOMKilled")
    assert record(play.status) == (2, "quotes-m2", 1, 0)
    before, after = limits(play, "quotes-m1"), limits(play, "quotes-m2")
    assert before["memory"] != after["memory"]
    assert before["ephemeral-storage"] == after["ephemeral-storage"]


def test_a_result_that_nobody_names_is_missing(play: Play) -> None:
    play.runs("quotes-m1")
    status = play.ends("quotes-m1", 0, {"message": "?"})
    assert "ResultMissing" in status.message
    assert record(status) == (2, "quotes-m2", 1, 0)


def test_vanished(play: Play) -> None:
    play.runs("quotes-m1")
    status = play.gone("quotes-m1")
    assert "JobVanished" in status.message
    assert record(status) == (2, "quotes-m2", 1, 0)


def test_no_heartbeat(play: Play) -> None:
    play.runs("quotes-m1")
    for _ in range(4):
        play.wait(10 * 60)
    assert record(play.status)[0] == 1
    play.trainer(progress={"step": 100, "heartbeat": "b"})
    play.wait(40 * 60)
    assert record(play.status)[0] == 1
    status = play.wait(6 * 60)
    assert "Stalled" in status.message
    assert record(status) == (2, "quotes-m2", 1, 0)
    assert play.job("quotes-m1")["metadata"].get("deletionTimestamp")
    assert "quotes-m2" not in play.jobs(), "never two at once"
    play.gone("quotes-m1")
    assert "quotes-m2" in play.jobs()


def test_suspend_while_merging(play: Play) -> None:
    play.runs("quotes-m1")
    status = play.change(lambda spec: spec.update(suspend=True))
    assert (status.phase, status.message) == ("Suspending", "The merge stops.")
    assert play.job("quotes-m1")["metadata"].get("deletionTimestamp")
    play.gone("quotes-m1")
    assert play.status.phase == "Suspended"
    version = play.store.version
    play.wait(3600)
    assert play.store.version == version
    status = play.change(lambda spec: spec.update(suspend=False))
    assert (status.phase, record(status)) == ("Merging", (2, "quotes-m2", 0, 0))
    assert len(status.attempts) == 1, "training is done"


def test_a_broken_spec_lets_the_merge_end(play: Play) -> None:
    play.runs("quotes-m1")
    play.change(lambda spec: spec["training"].update(maxSteps=0))
    assert (play.status.phase, play.condition(C.ACCEPTED)) == ("Merging", ("False", "InvalidSpec"))
    play.trainer(artifacts=MERGED)
    assert play.ends("quotes-m1", 0, DONE).phase == "Succeeded"


def test_a_smaller_accelerator_after_training_is_no_matter(play: Play) -> None:
    play.ends("quotes-m1", 10)
    plan = play.status.plan
    play.change(lambda spec: spec.update(accelerator={"gpu": {"type": "nvidia-tesla-t4"}}))
    assert play.annotate("a").phase == "Merging"
    assert play.status.plan == plan


def test_the_deadline_bounds_training_alone() -> None:
    play = merging(limits={"deadline": "1h"})
    play.runs("quotes-m1")
    for _ in range(12):
        play.trainer(progress={"step": 100, "heartbeat": str(play.now)})
        play.wait(600)
    assert play.status.phase == "Merging"
    assert "activeDeadlineSeconds" not in play.job("quotes-m1")["spec"]


def test_without_it_there_is_none() -> None:
    play = Play()
    play.training()
    assert play.ends("quotes-t1", 0, TRAINED).phase == "Succeeded"
    assert play.status.merge is None
    assert play.status.plan.merge is None  # type: ignore[union-attr]


def test_the_resource_is_deleted_while_merging(play: Play) -> None:
    play.runs("quotes-m1")
    play.store.remove(names.KIND, NAMESPACE, "quotes")
    version = play.store.version
    assert asyncio.run(reconcile(play.cluster, NAMESPACE, "quotes", play.now, play.settings)) is None
    assert play.store.version == version
    assert play.job("quotes-m1")["metadata"].get("deletionTimestamp"), "it goes with its owner"
