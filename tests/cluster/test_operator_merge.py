"""Merges under the operator as a process on the real control plane: the Jobs, the fields, and what deletion leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.story import ARTIFACTS, DONE, MERGED, Story
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture
def stage(crd: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Stage]:
    """A resource that is not created yet, and an operator for its namespace."""
    log = tmp_path / "operator.log"
    process = OperatorProcess(crd.operator_kubeconfig, log, namespaces=[namespace])
    try:
        process.ready()
        yield Stage(crd.api, namespace)
    finally:
        code = process.stop()
    assert code == 0, f"the operator ended with {code}:\n{process.server.tail(40)}"
    assert "Traceback" not in log.read_text(), log.read_text()[-8000:]


def test_preempted_suspended_failed_and_tried_again(stage: Stage, crd: ControlPlane) -> None:
    story = Story(stage, MERGED).create().to_the_end()
    story.check()
    status = stage.status
    assert status["merge"]["number"] == 4
    assert status["job"] == "quotes-m4"
    assert status["artifacts"] == ARTIFACTS, "the operator's writes leave the trainer's fields"
    assert status["message"].endswith("gs://bucket/quotes/merged. merged")
    assert (stage.condition("Succeeded")["status"], stage.condition("Finished")["status"]) == ("True", "True")
    crd.kubectl("wait", "gft/quotes", "-n", stage.namespace, "--for=condition=Finished", "--timeout=20s")
    pods = stage.api.get(stage.pods)["items"]
    assert {pod["spec"]["containers"][0]["command"][-1] for pod in pods} >= {"prepare", "train", "merge"}


def test_deleted_while_merging(stage: Stage) -> None:
    stage.create(output={"uri": "gs://bucket/quotes", "merge": True})
    stage.to_training()
    stage.ends("t1", 0, DONE)
    stage.runs_now("m1")
    stage.wait(lambda status: "writes 16-bit weights" in status.get("message", ""), "the merge to run")
    stage.api.delete(f"{stage.runs}/quotes")
    wait_for(lambda: not stage.job_names(), "the garbage collector to take the Jobs", seconds=60)
