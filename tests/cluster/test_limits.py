"""Limits and storms on the real control plane: time, money, kept time, and twenty preemptions in a row."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gemmatune_api import names
from gemmatune_operator.conditions import rfc3339
from tests.support.api import ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}
NODE = "played"


@pytest.fixture(scope="module")
def operator(crd: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    folder: Path = tmp_path_factory.mktemp("operator")
    prices = folder / "prices.yaml"
    prices.write_text("nvidia-l4: {onDemand: 3600, spot: 1800}\n")
    process = OperatorProcess(crd.operator_kubeconfig, folder / "operator.log", arguments=["--prices", str(prices)])
    try:
        yield process.ready()
    finally:
        assert process.stop() == 0
    assert "Traceback" not in (folder / "operator.log").read_text()


@pytest.fixture
def stage(operator: OperatorProcess, crd: ControlPlane, namespace: str) -> Stage:
    return Stage(crd.api, namespace)


def bind(stage: Stage, suffix: str) -> Object:
    """Puts the pod of a Job on a node, so that its deletion waits for a kubelet, which the test plays."""
    pod = stage.pod(suffix)
    if stage.api.find(f"/api/v1/nodes/{NODE}") is None:
        stage.api.create("/api/v1/nodes", {"metadata": {"name": NODE}})
    target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
    name = pod["metadata"]["name"]
    stage.api.create(f"{stage.pods}/{name}/binding", {"metadata": {"name": name}, "target": target})
    return stage.pod(suffix)


def train(stage: Stage) -> None:
    """Plays preparation and a first attempt on a node."""
    from tests.support.play import PREPARED

    stage.ends("p1", 0, PREPARED)
    bind(stage, "t1")
    stage.runs_now("t1")
    stage.wait_phase("Training")


def stop(stage: Stage, suffix: str, step: int) -> None:
    """The trainer answers SIGTERM: a checkpoint, its last words, exit 30; then the kubelet takes the pod away."""
    pod = stage.pod(suffix)
    job = stage.job(suffix)
    assert pod["metadata"]["deletionTimestamp"], "the pod gets SIGTERM"
    assert job["metadata"]["finalizers"] == ["foregroundDeletion"], "the Job waits for its pod"
    stage.trainer(progress={"step": step}, checkpoint={"step": step, "uri": f"gs://bucket/checkpoints/{step}"})
    assert stage.condition("Failed") == {}, "not over before the checkpoint is saved"
    stage.ends(suffix, 30, {"message": "stopped", "step": step})
    take_away(stage, pod)


def take_away(stage: Stage, pod: Object) -> None:
    """The kubelet lets a pod go that has ended."""
    path = f"{stage.pods}/{pod['metadata']['name']}"
    try:
        stage.api.delete(path, {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}})
    except ApiError as error:
        if error.status != 404:
            raise


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("limits", "reason", "raised"),
    [
        ({"deadline": "4s"}, "DeadlineExceeded", {"deadline": "1h"}),
        ({"maxCost": 4}, "BudgetExceeded", {"maxCost": 9000}),
    ],
    ids=["deadline", "maxCost"],
)
def test_a_limit_ends_with_a_checkpoint_and_resumes(stage: Stage, limits: Object, reason: str, raised: Object) -> None:
    """SIGTERM, checkpoint, then Failed with its step; a raised limit and the annotation go on from there."""
    stage.create(limits=limits)
    train(stage)
    status = stage.wait(lambda now: now["reason"] == reason, reason)
    assert status["phase"] == "Training"
    wait_for(lambda: stage.pod("t1")["metadata"].get("deletionTimestamp"), "the deletion to reach the pod")
    stop(stage, "t1", 43)
    status = stage.wait_phase("Failed")
    assert status["reason"] == reason
    assert "The checkpoint of step 43 is saved." in status["message"]
    assert next(iter(limits)) in status["remedy"]
    assert names.ANNOTATION_RETRY in status["remedy"]
    assert status["cost"]["soFar"] >= 4
    wait_for(lambda: stage.job_names() == ["quotes-p1"], "the Job to go")
    stage.change(limits=raised)
    stage.annotate("1")
    stage.runs_now("t2")
    status = stage.wait_phase("Training")
    assert (status["attempts"][-1]["fromStep"], status["attempts"][0]["toStep"]) == (43, 43)


def test_a_deadline_that_was_raised_outlasts_the_jobs_own(stage: Stage) -> None:
    """The Job controller ends the Job by the activeDeadlineSeconds that it was made with: a free attempt follows."""
    stage.create(limits={"deadline": "30m"})
    train(stage)
    stage.change(limits={"deadline": "10h"})
    job = f"{stage.jobs}/{stage.name}-t1"
    before = stage.api.get(job)["spec"]["activeDeadlineSeconds"]
    stage.api.patch(job, {"spec": {"activeDeadlineSeconds": 1}})  # what the test does not wait for
    wait_for(lambda: stage.pod("t1")["metadata"].get("deletionTimestamp"), "the Job controller's deletion")
    pod = stage.pod("t1")
    stage.trainer(checkpoint={"step": 43, "uri": "gs://bucket/checkpoints/43"})
    stage.ends("t1", 30, {"message": "stopped", "step": 43})
    take_away(stage, pod)
    stage.runs_now("t2")
    status = stage.wait_phase("Training")
    first = status["attempts"][0]
    assert (first["reason"], first["counted"]) == ("Interrupted", False)
    assert "activeDeadlineSeconds" in first["message"]
    assert status["attempts"][1]["fromStep"] == 43
    assert stage.job("t2")["spec"]["activeDeadlineSeconds"] > before + 9 * 3600


def test_a_run_that_completes_while_it_is_suspended(stage: Stage) -> None:
    """Its Job is being deleted and never becomes Complete; its pod tells of the manifest before it is gone."""
    stage.create()
    train(stage)
    stage.change(suspend=True)
    stage.wait_phase("Suspending")
    wait_for(lambda: stage.pod("t1")["metadata"].get("deletionTimestamp"), "the deletion to reach the pod")
    pod = stage.pod("t1")
    stage.ends("t1", 0, DONE)
    status = stage.wait_phase("Succeeded")
    assert [(item["number"], item["reason"]) for item in status["attempts"]] == [(1, "Completed")]
    assert stage.condition("Suspended")["reason"] == "Completed"
    take_away(stage, pod)
    wait_for(lambda: stage.job_names() == ["quotes-p1"], "the Job to go")
    stage.change(suspend=False)
    stage.wait(lambda now: now["observedGeneration"] == 3, "a look at what was resumed")
    assert stage.status["phase"] == "Succeeded"
    assert stage.job_names() == ["quotes-p1"], "no second node"


def test_a_limit_without_a_price(stage: Stage) -> None:
    """Refused before anything is paid for."""
    stage.create(accelerator={"gpu": {"type": "nvidia-a100-80gb"}}, limits={"maxCost": 5})
    status = stage.wait_phase("Failed")
    assert status["reason"] == "InvalidSpec"
    assert "spec.limits.maxCost" in status["message"]
    assert "nvidia-a100-80gb" in status["remedy"]
    assert stage.job_names() == []


@pytest.mark.timeout(240)
def test_ttl_takes_resource_and_jobs(stage: Stage) -> None:
    """Deleted so long after the end, its Jobs and pods with it; a longer time lets it stay."""
    stage.create(ttlAfterFinished="1h")
    stage.to_training()
    stage.ends("t1", 0, DONE)
    stage.wait_phase("Succeeded")
    stage.change(ttlAfterFinished="2s")
    wait_for(lambda: stage.api.find(f"{stage.runs}/quotes") is None, "the resource to go", seconds=60)
    wait_for(lambda: stage.job_names() == [], "the Jobs to go", seconds=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_preemptions_in_a_row(stage: Stage) -> None:
    """Spot nodes that go twenty times: each attempt ends for free, and the last one succeeds."""
    spot = {"mode": "spot", "fallback": {"afterPreemptions": 15}}
    stage.create(provisioning=spot)
    stage.to_training()
    for number in range(1, 21):
        stage.runs_now(f"t{number}")
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "TerminationByKubelet",
            "message": "the node is reclaimed",
            "lastTransitionTime": rfc3339(datetime.now(UTC)),
        }
        stage.pod_status(f"t{number}", {"conditions": [condition]})
        stage.ends(f"t{number}", 30, {"message": "stopped", "step": number})
        stage.job(f"t{number + 1}")
    stage.runs_now("t21")
    stage.wait_phase("Training")
    stage.ends("t21", 0, DONE)
    status = stage.wait_phase("Succeeded")
    assert status["counters"] == {"attempts": 21, "retries": 0, "preemptions": 20, "outOfMemory": 0, "stalls": 0}
    assert status["summary"]["retries"] == "0/3"
    modes = [attempt["provisioning"] for attempt in status["attempts"]]
    assert modes == ["spot"] * 14 + ["onDemand"] * 6, "the newest twenty of twenty-one"
    pods = stage.api.get(stage.pods, labelSelector="gemmatune.dev/role=train")["items"]
    assert len(pods) == 21, "one pod an attempt"
