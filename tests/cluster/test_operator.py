"""The operator as a process against the real control plane; the ends of pods are played."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.play import PREPARED
from tests.support.stage import Stage

pytestmark = pytest.mark.cluster
DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}


@pytest.fixture(scope="module")
def operator(crd: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all namespaces, as `python -m gemmatune_operator`."""
    log: Path = tmp_path_factory.mktemp("operator") / "operator.log"
    process = OperatorProcess(crd.kubeconfig, log)
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
    assert job["metadata"]["labels"].items() >= {
        "gemmatune.dev/run": "quotes",
        "gemmatune.dev/run-uid": uid,
        "gemmatune.dev/attempt": "1",
        "gemmatune.dev/role": "prepare",
        "app.kubernetes.io/managed-by": "gemmatune",
    }.items()
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
    reasons = [event["reason"] for event in stage.events()]
    assert reasons == ["Valid", "Preparing", "Prepared", "Provisioning", "Running", "Completed"]
