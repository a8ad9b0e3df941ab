"""The operator is killed with SIGKILL at every write that it makes; started again, it loses and doubles nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import DYING, ENV_KILLED, ENV_PASSED, OperatorProcess
from tests.support.play import PREPARED
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}
STEPS = ("p1 ends", "t1 runs", "t1 is interrupted", "t2 runs", "suspend", "resume", "t3 runs", "t3 ends")


class Script:
    """Plays a run from preparation over an interruption and a suspension to success, one step when it is due."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.done: list[str] = []
        self.pods: dict[str, set[str]] = {}

    def play(self) -> bool:
        """Takes the next step if the run has come that far; whether the run has succeeded."""
        status = self.stage.status
        self._count_pods()
        if len(self.done) < len(STEPS):
            step = STEPS[len(self.done)]
            if self._take(step, status):
                self.done.append(step)
        return bool(status.get("phase") == "Succeeded")

    def _take(self, step: str, status: Object) -> bool:
        phase, job = status.get("phase"), step.split()[0]
        if step == "suspend":
            return phase == "Training" and bool(self.stage.change(suspend=True))
        if step == "resume":
            return phase == "Suspended" and bool(self.stage.change(suspend=False))
        if job not in self.pods:
            return False
        if step.endswith("runs"):
            self.stage.runs_now(job)
        elif step == "p1 ends":
            self.stage.ends(job, 0, PREPARED)
        elif phase == "Training":
            code, message = (30, {"message": "asked to stop", "step": 7}) if job == "t1" else (0, DONE)
            self.stage.ends(job, code, message)
        else:
            return False
        return True

    def _count_pods(self) -> None:
        for pod in self.stage.api.get(self.stage.pods)["items"]:
            job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"].removeprefix("quotes-")
            self.pods.setdefault(job, set()).add(pod["metadata"]["uid"])


@pytest.mark.slow
def test_killed_at_every_write(crd: ControlPlane, make_namespace: Any, tmp_path: Path) -> None:
    """Every failpoint that an undisturbed run passes is one at which the operator is killed."""
    calm, _ = _run(crd, make_namespace(), tmp_path, killed=None)
    stormy, kills = _run(crd, make_namespace(), tmp_path, killed=tmp_path / "killed")
    for result in (calm, stormy):
        _check(result)
    recorded = set((tmp_path / "passed-calm").read_text().splitlines())
    survived = set((tmp_path / "killed").read_text().splitlines())
    assert recorded - survived == set(), "a write of an undisturbed run at which nothing was killed"
    assert kills == len(survived)
    assert _story(calm) == _story(stormy)


def _run(crd: ControlPlane, namespace: str, folder: Path, killed: Path | None) -> tuple[Script, int]:
    """Plays the script under an operator that is started again whenever it has died."""
    name = "stormy" if killed else "calm"
    environment = {ENV_PASSED: str(folder / f"passed-{name}")} | ({ENV_KILLED: str(killed)} if killed else {})
    script, kills = Script(Stage(crd.api, namespace)), 0

    def start() -> OperatorProcess:
        log = folder / f"{name}.log"
        return OperatorProcess(crd.kubeconfig, log, namespaces=[namespace], command=DYING, environment=environment)

    operator = start()
    script.stage.create()
    try:

        def succeeded() -> bool:
            nonlocal operator, kills
            if operator.ended is not None:
                assert operator.ended == -9, operator.server.tail(40)
                kills += 1
                operator = start()
            return script.play()

        def detail() -> str:
            return f"{script.done} {json.dumps(script.stage.status)[:3000]}\n{operator.server.tail(10)}"

        wait_for(succeeded, f"the {name} run to succeed", seconds=240, interval=0.1, detail=detail)
    finally:
        operator.kill()
    return script, kills


def _check(script: Script) -> None:
    """Three attempts, one Job and one pod each, and counters that fit."""
    status = script.stage.status
    assert script.pods.keys() == {"p1", "t1", "t2", "t3"}
    assert {job: len(pods) for job, pods in script.pods.items()} == {"p1": 1, "t1": 1, "t2": 1, "t3": 1}
    assert status["counters"] == {"attempts": 3, "retries": 0, "preemptions": 1, "outOfMemory": 0, "stalls": 0}
    assert status["prepare"]["number"] == 1


def _story(script: Script) -> list[tuple[int, str, bool]]:
    return [(item["number"], item["reason"], item["counted"]) for item in script.stage.status["attempts"]]


def test_killed_while_nothing_is_written(crd: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """What happens while no operator runs is found by the next one, without any event of it."""
    stage = Stage(crd.api, namespace)
    operator = OperatorProcess(crd.kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    stage.create()
    stage.ends("p1", 0, PREPARED)
    stage.runs_now("t1")
    stage.wait_phase("Training")
    operator.kill()
    stage.ends("t1", 30, {"message": "asked to stop", "step": 3})
    wait_for(lambda: stage.job("t1")["status"].get("failed"), "the Job controller to notice")
    stage.change(limits={"maxRetries": 1})
    operator = OperatorProcess(
        crd.kubeconfig, tmp_path / "operator.log", namespaces=[namespace], arguments=["--resync", "1"]
    )
    try:
        stage.job("t2")
        assert stage.status["attempts"][0]["reason"] == "Interrupted"
        # A status that somebody else wrote gives no event that matters; the resync sees it.
        stage.api.patch(f"{stage.runs}/quotes/status", {"status": {"phase": "Nonsense"}})
        stage.wait(lambda now: now["phase"] != "Nonsense", "the resync to put the phase right")
    finally:
        assert operator.stop() == 0


def test_the_api_server_goes_away(crd: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """While the API server is away nothing is lost; when it is back, the same process goes on."""
    stage = Stage(crd.api, namespace)
    operator = OperatorProcess(crd.kubeconfig, tmp_path / "operator.log", namespaces=[namespace]).ready()
    try:
        stage.create()
        # A Job controller whose answer is lost in the middle of a creation makes the pod twice for a moment.
        wait_for(lambda: stage.job("p1").get("status", {}).get("active") == 1, "the Job controller to know its pod")
        crd.restart_apiserver()
        stage.ends("p1", 0, PREPARED)
        stage.runs_now("t1")
        stage.wait_phase("Training", 60)
        assert operator.ended is None, operator.server.tail(20)
        assert operator.probe("healthz") == 200
    finally:
        assert operator.stop() == 0
