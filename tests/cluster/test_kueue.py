"""Kueue's part played on the real control plane: a mutating policy suspends Jobs, the test admits and evicts them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gemmatune_api import gke
from gemmatune_operator.conditions import parse_time
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.play import PREPARED
from tests.support.stage import SECONDS, Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
POLICIES = "/apis/admissionregistration.k8s.io/v1"
QUEUE = "gpus"
DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}


@pytest.fixture(scope="module")
def kueue(crd: ControlPlane) -> Iterator[None]:
    """What Kueue's webhook does: a Job that names a queue is suspended when it is created."""
    name = "kueue-plays"
    label = f"'{gke.KUEUE_QUEUE}' in object.metadata.labels"
    policy = {
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ]
            },
            "matchConditions": [{"name": "queue", "expression": f"has(object.metadata.labels) && {label}"}],
            "mutations": [
                {
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {"expression": "Object{spec: Object.spec{suspend: true}}"},
                }
            ],
        },
    }
    binding = {"metadata": {"name": name}, "spec": {"policyName": name}}
    crd.api.create(f"{POLICIES}/mutatingadmissionpolicies", policy)
    crd.api.create(f"{POLICIES}/mutatingadmissionpolicybindings", binding)
    probe = {
        "metadata": {"generateName": "probe-", "labels": {gke.KUEUE_QUEUE: QUEUE}},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}},
    }

    def suspends() -> bool:
        made = crd.api.create("/apis/batch/v1/namespaces/default/jobs?dryRun=All", probe)
        return bool(made["spec"].get("suspend"))

    wait_for(suspends, "the policy to hold")
    yield
    crd.api.delete(f"{POLICIES}/mutatingadmissionpolicybindings/{name}")
    crd.api.delete(f"{POLICIES}/mutatingadmissionpolicies/{name}")


@pytest.fixture(scope="module")
def operator(kueue: None, crd: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log: Path = tmp_path_factory.mktemp("operator") / "operator.log"
    process = OperatorProcess(crd.operator_kubeconfig, log)
    try:
        yield process.ready()
    finally:
        assert process.stop() == 0
    assert "Traceback" not in log.read_text(), log.read_text()[-8000:]


@pytest.fixture
def stage(operator: OperatorProcess, crd: ControlPlane, namespace: str) -> Stage:
    return Stage(crd.api, namespace)


class Kueue:
    """Admits and evicts the Jobs of a stage, in the steps that Kueue takes."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def path(self, suffix: str) -> str:
        return f"{self._stage.jobs}/{self._stage.name}-{suffix}"

    def admit(self, suffix: str, flavor: str) -> Object:
        """Sets the flavor's node selector and toleration while the Job is suspended, then lets it go."""
        job = wait_for(lambda: _takes_a_flavor(self._stage.job(suffix)), f"Job {suffix} to be wound down")
        template = job["spec"]["template"]["spec"]
        pod = {
            "nodeSelector": {**template.get("nodeSelector", {}), "flavor": flavor},
            "tolerations": [*template["tolerations"], {"key": "flavor", "operator": "Exists"}],
        }
        self._stage.api.patch(self.path(suffix), {"spec": {"template": {"spec": pod}}})
        return self._stage.api.patch(self.path(suffix), {"spec": {"suspend": False}})

    def evict(self, suffix: str) -> None:
        """Takes the admission back."""
        self._stage.api.patch(self.path(suffix), {"spec": {"suspend": True}})


def _takes_a_flavor(job: Object) -> Object | None:
    """The Job once the API server lets its pod template change.

    That is later than the end of its last pod: the Job controller writes down first that it stands still.
    """
    status = job.get("status") or {}
    states = {each["type"]: each["status"] for each in status.get("conditions") or []}
    started = "startTime" in status and states.get("Suspended") != "True"
    return None if started or status.get("active") else job


def _age(moment: str) -> timedelta:
    found = parse_time(moment)
    assert found is not None
    return datetime.now(UTC) - found


@pytest.mark.timeout(240)
def test_queued_admitted_and_done(stage: Stage) -> None:
    """Queued until Kueue admits the Job; what it changed stays; the wait for nodes counts from there."""
    kueue = Kueue(stage)
    stage.create(scheduling={"queueName": QUEUE}, limits={"pendingDeadline": "10m", "deadline": "1h"})
    assert not stage.job("p1")["spec"].get("suspend"), "the preparation waits for no queue"
    stage.ends("p1", 0, PREPARED)
    status = stage.wait_phase("Queued", SECONDS)
    assert status["reason"] == "Queued"
    assert QUEUE in status["message"]
    made = stage.job("t1")
    assert (made["spec"]["suspend"], made["metadata"]["labels"][gke.KUEUE_QUEUE]) == (True, QUEUE)
    assert stage.api.get(stage.pods, labelSelector="gemmatune.dev/role=train")["items"] == []
    assert "pendingSince" not in (status.get("timers") or {})
    admitted = kueue.admit("t1", "cheap")
    stage.wait(lambda now: (now.get("timers") or {}).get("pendingSince"), "the wait for nodes to begin")
    stage.runs_now("t1")
    status = stage.wait_phase("Training")
    assert stage.pod("t1")["spec"]["nodeSelector"]["flavor"] == "cheap"
    found = stage.job("t1")
    assert (found["metadata"]["uid"], found["spec"]["suspend"]) == (made["metadata"]["uid"], False)
    assert found["spec"]["template"]["spec"]["nodeSelector"]["flavor"] == "cheap", "nobody took it back"
    assert found["metadata"]["generation"] == admitted["metadata"]["generation"]
    assert _age(found["status"]["startTime"]) < _age(made["metadata"]["creationTimestamp"]) + timedelta(seconds=1)
    assert found["spec"]["activeDeadlineSeconds"] == 3600 + 600 + 60
    stage.ends("t1", 0, DONE)
    assert stage.wait_phase("Succeeded")["counters"]["attempts"] == 1


@pytest.mark.timeout(240)
def test_evicted_before_it_ran(stage: Stage) -> None:
    """Nothing was begun: the same Job waits again, under the same attempt."""
    kueue = Kueue(stage)
    stage.create(scheduling={"queueName": QUEUE})
    stage.ends("p1", 0, PREPARED)
    stage.wait_phase("Queued")
    kueue.admit("t1", "cheap")
    stage.pod("t1")
    stage.wait_phase("Provisioning")
    kueue.evict("t1")
    stage.wait_phase("Queued")
    wait_for(lambda: not stage.api.get(stage.pods, labelSelector="gemmatune.dev/role=train")["items"], "its pod to go")
    kueue.admit("t1", "dear")
    stage.runs_now("t1")
    status = stage.wait_phase("Training")
    assert stage.pod("t1")["spec"]["nodeSelector"]["flavor"] == "dear"
    assert status["counters"] == {"attempts": 1, "retries": 0, "preemptions": 0, "outOfMemory": 0, "stalls": 0}


@pytest.mark.timeout(240)
def test_evicted_in_mid_run(stage: Stage) -> None:
    """The attempt ends for free, its Job goes, and the next one queues by itself and resumes."""
    kueue = Kueue(stage)
    stage.create(scheduling={"queueName": QUEUE})
    stage.ends("p1", 0, PREPARED)
    stage.wait_phase("Queued")
    kueue.admit("t1", "cheap")
    stage.runs_now("t1")
    stage.wait_phase("Training")
    stage.trainer(progress={"step": 41}, checkpoint={"step": 40, "uri": "gs://bucket/checkpoints/step-00000040"})
    kueue.evict("t1")
    status = stage.wait(lambda now: len(now["attempts"]) == 2, "attempt 2")
    first, second = status["attempts"]
    assert (first["reason"], first["counted"], second["fromStep"]) == ("EvictedByQueue", False, 40)
    assert stage.job("t2")["spec"]["suspend"] is True
    status = stage.wait_phase("Queued")
    assert status["counters"] | {"retries": 0, "preemptions": 1} == status["counters"]
    wait_for(lambda: stage.job_names() == ["quotes-p1", "quotes-t2"], "the evicted Job to go")
    kueue.admit("t2", "dear")
    stage.runs_now("t2")
    stage.wait_phase("Training")
    stage.ends("t2", 0, DONE)
    stage.wait_phase("Succeeded")


@pytest.mark.timeout(240)
def test_suspended_by_the_user_while_queued(stage: Stage) -> None:
    """spec.suspend of the resource takes the queued Job away; taken back, a new one queues."""
    stage.create(scheduling={"queueName": QUEUE})
    stage.ends("p1", 0, PREPARED)
    stage.wait_phase("Queued")
    stage.change(suspend=True)
    stage.wait_phase("Suspended")
    assert stage.job_names() == ["quotes-p1"]
    stage.change(suspend=False)
    stage.job("t2")
    stage.wait_phase("Queued")
