"""An operator that is replaced by another release's while runs are under way, on the real control plane."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmatune_api import handover
from gemmatune_api.names import ANNOTATION_RETRY, ENV_RUN, ExitCode
from gemmatune_api.runconfig import RunConfig
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.play import PREPARED
from tests.support.stage import Stage

pytestmark = pytest.mark.cluster
OLD, NEW = "registry.example/trainer:1", "registry.example/trainer:2"


class Releases:
    """One operator after the other, each with its release's image of the trainer."""

    def __init__(self, crd: ControlPlane, namespace: str, folder: Path) -> None:
        self._crd, self._namespace, self._folder = crd, namespace, folder
        self._running: OperatorProcess | None = None

    def start(self, image: str, *arguments: str) -> None:
        """Replaces the operator, as a rollout does: the old one goes first."""
        self.stop()
        log = self._folder / f"{image.rpartition(':')[2]}.log"
        flags = [f"--trainer-image={image}", *arguments]
        process = OperatorProcess(self._crd.operator_kubeconfig, log, namespaces=[self._namespace], arguments=flags)
        self._running = process.ready()

    def stop(self) -> None:
        if self._running is not None:
            assert self._running.stop() == 0
            assert self._running.stacks() == []
        self._running = None


@pytest.fixture
def operator(crd: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Releases]:
    found = Releases(crd, namespace, tmp_path)
    yield found
    found.stop()


def container(job: Object) -> Object:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def told(job: Object) -> RunConfig:
    return RunConfig.from_env(next(item["value"] for item in container(job)["env"] if item["name"] == ENV_RUN))


def test_an_upgrade_during_a_run(operator: Releases, crd: ControlPlane, namespace: str) -> None:
    """The running Job stays as it is; the next attempt gets the new image, and goes on with the same run."""
    operator.start(OLD)
    stage = Stage(crd.api, namespace)
    stage.create()
    stage.to_training()
    job, pod = stage.job("t1"), stage.pod("t1")
    assert container(job)["image"] == OLD
    stage.trainer(checkpoint={"step": 40, "uri": "gs://bucket/step-40"})
    operator.start(NEW, "--trainer-env=RELEASE=2")
    stage.change(limits={"maxRetries": 7})  # the new operator looks at the run
    stage.wait(lambda now: now["observedGeneration"] == 2, "the new operator's look")
    assert stage.status["phase"] == "Training"
    now, pod_now = stage.job("t1"), stage.pod("t1")
    assert (now["metadata"]["uid"], now["spec"]) == (job["metadata"]["uid"], job["spec"])
    assert (pod_now["metadata"]["uid"], pod_now["spec"]) == (pod["metadata"]["uid"], pod["spec"])
    stage.ends("t1", ExitCode.INTERRUPTED, {"message": "stopped", "step": 40})
    following = stage.job("t2")
    assert container(following)["image"] == NEW
    assert {"name": "RELEASE", "value": "2"} in container(following)["env"]
    assert told(following) == told(job).model_copy(update={"attempt": 2})
    assert stage.status["checkpoint"]["step"] == 40


def test_an_upgrade_during_preparation_and_a_way_back(operator: Releases, crd: ControlPlane, namespace: str) -> None:
    """What the former preparation found is not asked for again, and a rollback is an upgrade like any other."""
    operator.start(OLD)
    stage = Stage(crd.api, namespace)
    stage.create(pod={"image": "registry.example/mine:7"})
    other = Stage(crd.api, namespace, "other")
    other.create()
    first = other.job("p1")
    operator.start(NEW)
    assert other.job("p1")["spec"] == first["spec"]
    for run in (stage, other):
        run.ends("p1", 0, PREPARED)
        run.runs_now("t1")
        run.wait_phase("Training")
    assert other.job_names() == ["other-p1", "other-t1", "quotes-p1", "quotes-t1"], "of both runs"
    assert container(other.job("t1"))["image"] == NEW
    assert container(stage.job("t1"))["image"] == "registry.example/mine:7", "the resource's own stays"
    operator.start(OLD)
    other.ends("t1", ExitCode.CRASHED, {"message": "no"})
    assert container(other.job("t2"))["image"] == OLD
    assert told(other.job("t2")) == told(other.job("t1")).model_copy(update={"attempt": 2})


def test_an_image_of_another_release_is_corrected_and_the_run_goes_on(
    operator: Releases, crd: ControlPlane, namespace: str
) -> None:
    """The trainer does not know what a newer operator tells it: no new resource is needed, and nothing is lost."""
    operator.start(NEW)
    stage = Stage(crd.api, namespace)
    stage.create(pod={"image": "registry.example/mine:7"})
    stage.to_training()
    said = str(handover.of_version(2, 1))
    stage.ends("t1", ExitCode.INVALID_CONFIG, json.dumps({"message": said, "remedy": handover.OTHER_RELEASE}))
    status = stage.wait_phase("Failed")
    assert (status["reason"], status["message"]) == ("InvalidConfig", said)
    assert status["remedy"].startswith(f"{handover.OTHER_RELEASE} Then ")
    assert ANNOTATION_RETRY in status["remedy"]
    stage.change(pod=None)
    stage.annotate("1")
    assert container(stage.job("t2"))["image"] == NEW
