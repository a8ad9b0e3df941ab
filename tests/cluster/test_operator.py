"""The operator as a process against the real control plane; the ends of pods are played."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gemmatune_api import names
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.manifests import quantities
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.play import PREPARED
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}


@pytest.fixture(scope="module")
def operator(crd: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all namespaces, as `python -m gemmatune_operator`."""
    log: Path = tmp_path_factory.mktemp("operator") / "operator.log"
    process = OperatorProcess(crd.operator_kubeconfig, log)
    try:
        yield process.ready()
    finally:
        code = process.stop()
    assert code == 0, f"the operator ended with {code}:\n{process.server.tail(40)}"
    assert "Traceback" not in log.read_text(), log.read_text()[-8000:]


@pytest.fixture
def stage(operator: OperatorProcess, crd: ControlPlane, namespace: str) -> Stage:
    """A resource that is not created yet."""
    return Stage(crd.api, namespace)


def test_success(stage: Stage, crd: ControlPlane) -> None:
    """Preparation, attempt, success: exact names, labels and owners; one pod each; what kubectl says."""
    uid = stage.create()["metadata"]["uid"]
    job = stage.job("p1")
    assert job["metadata"]["name"] == "quotes-p1"
    owner = job["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["kind"], owner["controller"], owner["blockOwnerDeletion"]) == (
        uid,
        "GemmaFineTune",
        True,
        True,
    )
    assert (
        job["metadata"]["labels"].items()
        >= {
            "gemmatune.dev/run": "quotes",
            "gemmatune.dev/run-uid": uid,
            "gemmatune.dev/attempt": "1",
            "gemmatune.dev/role": "prepare",
            "app.kubernetes.io/managed-by": "gemmatune",
        }.items()
    )
    assert stage.status.get("job") is None
    stage.ends("p1", 0, PREPARED)
    stage.runs_now("t1")
    status = stage.wait_phase("Training")
    assert status["job"] == "quotes-t1"
    assert status["data"]["rows"] == 320
    assert status["plan"]["verdict"] == "fits"
    stage.trainer(progress={"step": 40, "totalSteps": 100, "heartbeat": "2026-03-01T12:00:00Z"})
    stage.ends("t1", 0, DONE)
    crd.kubectl("wait", "gft/quotes", "-n", stage.namespace, "--for=condition=Finished", "--timeout=20s")
    status = stage.wait_phase("Succeeded")
    assert status["progress"]["step"] == 40, "the operator's writes leave the trainer's fields"
    assert status["counters"]["attempts"] == 1
    assert stage.job_names() == ["quotes-p1", "quotes-t1"]
    # There is no node here, so pods may be Unschedulable for a moment.
    reasons = [event["reason"] for event in stage.events() if event["reason"] != "Unschedulable"]
    assert reasons == ["Valid", "Preparing", "Prepared", "Provisioning", "Running", "Completed"]


def test_invalid_data_fails_at_once(stage: Stage) -> None:
    """Exit 12 of the preparation: Failed within five seconds, with the trainer's words and remedy."""
    stage.create()
    message = {"message": "row 7 has no column 'quote'", "remedy": "Correct dataset.text.template."}
    stage.ends("p1", 12, message)
    began = time.monotonic()
    status = stage.wait_phase("Failed")
    assert time.monotonic() - began < 5
    assert (status["reason"], status["message"], status["remedy"]) == (
        "DataInvalid",
        "row 7 has no column 'quote'",
        "Correct dataset.text.template.",
    )
    assert stage.condition("Finished")["status"] == "True"
    assert stage.condition("Prepared")["status"] == "False"
    assert stage.job_names() == ["quotes-p1"]


def test_correction_before_the_first_attempt(stage: Stage) -> None:
    """A corrected spec starts a second preparation; the first one's Job goes."""
    stage.create()
    stage.ends("p1", 12, {"message": "no such column"})
    stage.wait_phase("Failed")
    stage.change(dataset={"text": {"template": "{text}"}})
    stage.job("p2")
    status = stage.wait(lambda now: now["phase"] == "Preparing", "a second preparation")
    assert stage.condition("Failed")["status"] == "False"
    assert stage.condition("Finished")["status"] == "False"
    assert (status["prepare"]["number"], status["prepare"]["generation"]) == (2, 2)
    stage.change(dataset={"text": {"template": "{quote}"}})  # while p2 still runs
    stage.job("p3")
    wait_for(lambda: "quotes-p2" not in stage.job_names(), "the outdated preparation to go")


def test_retries_by_cause(stage: Stage) -> None:
    """OOMKilled asks for more memory and counts; exit 20 halves the batch and exit 30 is free: neither counts."""
    stage.create()
    stage.to_training()
    limit = _limit(stage.job("t1"), "memory")
    stage.ends("t1", 137, "", "OOMKilled")
    status = stage.wait(lambda now: len(now["attempts"]) == 2, "attempt 2")
    assert status["attempts"][0]["reason"] == "HostOutOfMemory"
    assert status["attempts"][0]["counted"] is True
    assert _limit(stage.job("t2"), "memory") > limit
    assert status["counters"]["retries"] == 1
    micro = status["plan"]["microBatchSize"]
    stage.ends("t2", 20, {"message": "CUDA out of memory", "step": 4})
    status = stage.wait(lambda now: len(now["attempts"]) == 3, "attempt 3")
    assert status["attempts"][1]["reason"] == "AcceleratorOutOfMemory"
    overrides = status["attempts"][2]["overrides"]
    assert overrides["microBatchSize"] == micro // 2 or overrides["gradientCheckpointing"]
    assert _limit(stage.job("t3"), "memory") > limit, "what was granted stays"
    stage.ends("t3", 30, {"message": "asked to stop", "step": 9})
    status = stage.wait(lambda now: len(now["attempts"]) == 4, "attempt 4")
    assert (status["attempts"][2]["reason"], status["attempts"][2]["toStep"]) == ("Interrupted", 9)
    assert status["counters"] == {"attempts": 4, "retries": 1, "preemptions": 1, "outOfMemory": 1, "stalls": 0}
    assert status["summary"]["retries"] == "1/3"


def test_job_deleted_by_hand(stage: Stage, crd: ControlPlane) -> None:
    """A vanished Job is a counted retry under the next number, never a second pod under the same one."""
    stage.create()
    stage.to_training()
    crd.kubectl("delete", "job", "quotes-t1", "-n", stage.namespace, "--wait=true")
    status = stage.wait(lambda now: len(now["attempts"]) == 2, "attempt 2")
    assert (status["attempts"][0]["reason"], status["attempts"][0]["counted"]) == ("JobVanished", True)
    stage.pod("t2")


def test_suspend_and_resume(stage: Stage) -> None:
    """Suspended=True comes only when the Job is gone; resuming is the next attempt and counts for nothing."""
    stage.create()
    stage.to_training()
    stage.change(suspend=True)
    stage.wait_phase("Suspended")
    assert stage.job_names() == ["quotes-p1"]
    assert stage.api.get(stage.pods, labelSelector="gemmatune.dev/role=train")["items"] == []
    assert stage.condition("Training")["status"] == "False"
    stage.change(suspend=False)
    stage.runs_now("t2")
    status = stage.wait_phase("Training")
    assert (status["attempts"][0]["reason"], status["attempts"][0]["counted"]) == ("Suspended", False)
    assert status["counters"] == {"attempts": 2, "retries": 0, "preemptions": 0, "outOfMemory": 0, "stalls": 0}
    assert stage.condition("Suspended") | {"status": "False", "reason": "Resumed"} == stage.condition("Suspended")


def test_delete_collects_everything(stage: Stage, operator: OperatorProcess) -> None:
    """Deleting the resource takes Jobs and pods along; there is no finalizer. What it has used is counted."""
    stage.create()
    stage.to_training()
    deleted = 'gemmatune_attempts_ended_total{cause="Deleted"}'
    used = f'gemmatune_namespace_accelerator_seconds_total{{run_namespace="{stage.namespace}"}}'
    before = _value(operator, deleted)
    began = stage.status["attempts"][0]["trainingTime"]
    wait_for(lambda: rfc3339(datetime.now(UTC)) > began, "a second of training")
    assert "finalizers" not in stage.resource["metadata"]
    stage.api.delete(f"{stage.runs}/quotes")
    wait_for(lambda: stage.api.find(f"{stage.runs}/quotes") is None, "the resource to go")
    wait_for(lambda: stage.job_names() == [], "the Jobs to go")
    wait_for(lambda: stage.api.get(stage.pods)["items"] == [], "the pods to go")
    wait_for(lambda: _value(operator, deleted) == before + 1, "its attempt to be counted")
    assert _value(operator, used) > 0


def test_same_name_again(stage: Stage) -> None:
    """A new resource of an old name waits for the old Jobs, then runs with its own."""
    stage.create()
    # With the old Job's pod there, the Job controller awaits nothing under that name; the race is held elsewhere
    # (test_created_again_at_once), with the five minutes that the controller may then wait.
    pod = stage.pod("p1")["metadata"]["name"]
    old = stage.job("p1")
    stage.api.delete(f"{stage.runs}/quotes")
    stage.create()
    _wait_for_another(stage, old)
    wait_for(lambda: stage.api.find(f"{stage.pods}/{pod}") is None, "the old pod to go")
    stage.ends("p1", 0, PREPARED)
    stage.job("t1")


def test_foreign_job_is_left_alone(stage: Stage) -> None:
    """A Job of the name that belongs to nobody: NameConflict, and it is not touched."""
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    foreign = stage.api.create(stage.jobs, {"metadata": {"name": "quotes-p1"}, "spec": {"template": template}})
    stage.create()
    status = stage.wait(lambda now: now.get("reason") == "NameConflict", "NameConflict")
    assert "quotes-p1" in status["message"]
    assert stage.condition("Failed") == {}
    assert stage.job("p1")["metadata"]["uid"] == foreign["metadata"]["uid"]
    stage.api.delete(f"{stage.jobs}/quotes-p1", {"propagationPolicy": "Background"})
    _wait_for_another(stage, foreign)


def test_what_only_pydantic_sees(stage: Stage) -> None:
    """A spec that the API server lets through and pydantic does not: Accepted=False with path and remedy."""
    stage.create(dataset={"uri": "gs://bucket/rows.jsonl", "text": {"template": "Quote: {quote"}})
    status = stage.wait_phase("Failed")
    assert status["reason"] == "InvalidSpec"
    assert "spec.dataset.text.template" in status["message"]
    assert status["remedy"]
    accepted = stage.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert stage.condition("Finished")["status"] == "True"
    assert stage.job_names() == []
    stage.change(dataset={"text": {"template": "Quote: {quote}"}})
    stage.job("p1")
    assert stage.condition("Accepted")["status"] == "True"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"accelerator": {"tpu": {"type": "tpu7x", "topology": "2x2x1"}}}, "spec.accelerator.tpu.type"),
        ({"accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "4x4"}}}, "spec.accelerator.tpu"),
    ],
)
def test_not_supported_yet(stage: Stage, changes: Object, path: str) -> None:
    """A field without behaviour is refused by name, never ignored."""
    stage.create(**changes)
    status = stage.wait_phase("Failed")
    assert status["reason"] == "NotSupportedYet"
    assert f"{path}: " in status["message"]
    assert status["remedy"].startswith(("Use another TPU type", "Use a slice of one host: "))
    assert stage.job_names() == []


def test_does_not_fit(stage: Stage) -> None:
    """The planner's verdict comes before any node is paid for."""
    stage.create(model={"uri": "hf://google/gemma-2-27b"}, lora={}, accelerator={"gpu": {"type": "nvidia-tesla-t4"}})
    status = stage.wait_phase("Failed")
    assert status["reason"] == "DoesNotFit"
    assert status["remedy"]
    assert stage.job_names() == []


def test_second_owner_of_an_output_waits(stage: Stage) -> None:
    """Two resources, one output: the second is not accepted, and starts when the first is gone."""
    uri = f"gs://bucket/{stage.namespace}/shared"
    stage.create(output={"uri": uri})
    stage.job("p1")
    second = Stage(stage.api, stage.namespace, "second")
    second.create(output={"uri": f"{uri}/"})
    status = second.wait(lambda now: now.get("reason") == "OutputInUse", "OutputInUse")
    assert status["phase"] == "Pending"
    assert "quotes" in status["message"]
    assert second.condition("Failed") == {}
    stage.api.delete(f"{stage.runs}/quotes")
    second.wait(lambda now: now.get("phase") == "Preparing", "the second run to start", 60)


def test_retry_annotation(stage: Stage) -> None:
    """A Failed run goes on when the annotation gets a new value; an old value does nothing."""
    stage.create(limits={"maxRetries": 0})
    stage.to_training()
    stage.ends("t1", 137)
    status = stage.wait_phase("Failed")
    assert status["reason"] == "Killed"
    assert names.ANNOTATION_RETRY in status["remedy"]
    stage.annotate("1")
    stage.runs_now("t2")
    status = stage.wait_phase("Training")
    assert status["observedRetry"] == "1"
    stage.ends("t2", 137)
    stage.wait_phase("Failed")
    stage.change(limits={"maxRetries": 5})
    stage.wait(lambda now: now["observedGeneration"] == 2, "the change to be seen")
    assert stage.status["phase"] == "Failed", "the old value counts once"


def test_quota_shows_within_seconds(stage: Stage) -> None:
    """Only the Job's event tells of a quota: the condition names it, and the run goes on by itself."""
    quotas = f"/api/v1/namespaces/{stage.namespace}/resourcequotas"
    stage.api.create(quotas, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    wait_for(lambda: stage.api.get(f"{quotas}/none").get("status", {}).get("hard"), "the quota to hold")
    stage.create()
    status = stage.wait(lambda now: now.get("reason") == "QuotaExceeded", "QuotaExceeded", 15)
    assert status["phase"] == "Preparing"
    assert "exceeded quota" in status["message"]
    stage.api.delete(f"{quotas}/none")


def test_refused_job(stage: Stage) -> None:
    """The API server refuses the Job itself: PolicyDenied, and a new try when it is allowed."""
    quotas = f"/api/v1/namespaces/{stage.namespace}/resourcequotas"
    stage.api.create(quotas, {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}})
    wait_for(lambda: stage.api.get(f"{quotas}/none").get("status", {}).get("hard"), "the quota to hold")
    stage.create()
    status = stage.wait(lambda now: now.get("reason") == "PolicyDenied", "PolicyDenied")
    assert "exceeded quota" in status["message"]
    stage.api.delete(f"{quotas}/none")
    wait_for(lambda: stage.job_names() == ["quotes-p1"], "the Job", seconds=40)


def test_disruption_is_free(stage: Stage) -> None:
    """DisruptionTarget=True ends the attempt as Preempted whatever the exit code; no second pod in the same Job."""
    stage.create()
    stage.to_training()
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "drained",
        # Without a time Kubernetes takes it for stale and sets it to False.
        "lastTransitionTime": rfc3339(datetime.now(UTC)),
    }
    stage.pod_status("t1", {"conditions": [condition]})
    stage.ends("t1", 143)
    status = stage.wait(lambda now: len(now["attempts"]) == 2, "attempt 2")
    assert (status["attempts"][0]["reason"], status["attempts"][0]["counted"]) == ("Preempted", False)
    stage.runs_now("t2")
    stage.wait_phase("Training")
    pods = stage.api.get(stage.pods, labelSelector="gemmatune.dev/attempt=1,gemmatune.dev/role=train")["items"]
    assert len(pods) == 1


def test_result_missing(stage: Stage) -> None:
    """Complete without a named manifest is no success."""
    stage.create()
    stage.to_training()
    stage.ends("t1", 0)
    status = stage.wait(lambda now: len(now["attempts"]) == 2, "attempt 2")
    assert (status["attempts"][0]["reason"], status["attempts"][0]["counted"]) == ("ResultMissing", True)


def test_probes_and_metrics(operator: OperatorProcess, stage: Stage) -> None:
    """Probes answer, and a scrape shows what the operator did; progress alone costs it no look."""
    assert (operator.probe("healthz"), operator.probe("readyz")) == (200, 200)
    stage.create()
    stage.to_training()
    wait_for(lambda: _value(operator, "gemmatune_queue_depth") == 0, "an empty queue")
    text = operator.metrics()
    for name in (
        'gemmatune_api_requests_total{code="201",kind="Job",verb="create"}',
        'gemmatune_api_request_seconds_count{verb="apply"}',
        'gemmatune_reconciles_total{outcome="ok"}',
        "gemmatune_reconcile_seconds_count",
        "gemmatune_queue_wait_seconds_count",
    ):
        assert f"{name} " in text, text
    assert 'outcome="error"' not in text


def _wait_for_another(stage: Stage, old: Object) -> None:
    def another() -> bool:
        job = stage.api.find(f"{stage.jobs}/{old['metadata']['name']}")
        return job is not None and job["metadata"]["uid"] != old["metadata"]["uid"]

    wait_for(another, "a Job of its own", seconds=60)


def _limit(job: Object, resource: str) -> float:
    container = job["spec"]["template"]["spec"]["containers"][0]
    return float(quantities.parse(container["resources"]["limits"][resource]))


def _value(operator: OperatorProcess, name: str) -> float:
    return next(float(line.split()[-1]) for line in operator.metrics().splitlines() if line.startswith(f"{name} "))
