"""The operator is killed with SIGKILL at every write that it makes; started again, it loses and doubles nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import names
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import DYING, ENV_EACH, ENV_KILLED, ENV_PASSED, OperatorProcess
from tests.support.play import PREPARED
from tests.support.soak import only_in_soak
from tests.support.stage import Stage
from tests.support.story import DONE, PLOTS, Plot, Story
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster


@pytest.mark.slow
@pytest.mark.parametrize("each", [False, pytest.param(True, marks=only_in_soak)], ids=["kinds", "each"])
def test_killed_at_every_write(crd: ControlPlane, make_namespace: Any, tmp_path: Path, each: bool) -> None:
    """Every failpoint that undisturbed runs pass is one at which the operator is killed.

    In CI each kind of write is one (a status write of each phase is a kind); in a soak the second and third of a kind
    within a process are too, as far as a process lives to make them, and every story meets them all.
    """
    recorded: set[str] = set()
    kills = 0
    for plot in PLOTS:
        killed = tmp_path / (f"killed-{plot.name}" if each else "killed")
        calm = _run(crd, make_namespace(), tmp_path, plot, each=each)
        before = _lines(killed)
        stormy = _run(crd, make_namespace(), tmp_path, plot, killed, each=each)
        for story in (calm, stormy):
            story.check()
        passed = _lines(tmp_path / f"passed-{plot.name}-calm")
        recorded |= passed
        kills += len(_lines(killed) - before)
        assert _kinds(passed) - _kinds(_lines(killed)) == set(), (
            "a write of an undisturbed run at which nothing was killed"
        )
    assert {point.split()[1] for point in recorded} >= {"apply", "create", "delete"}
    assert kills >= len(_kinds(recorded))


@pytest.mark.slow
def test_killed_at_the_deletion_of_a_finished_run(crd: ControlPlane, make_namespace: Any, tmp_path: Path) -> None:
    """ttlAfterFinished: killed before and after the deletion, the resource goes, and its Jobs go with it."""
    environment = {ENV_PASSED: str(tmp_path / "passed"), ENV_KILLED: str(tmp_path / "killed")}
    (tmp_path / "killed").write_text("\n".join(_points()))
    stage = Stage(crd.api, make_namespace())
    log = tmp_path / "operator.log"

    def start() -> OperatorProcess:
        return OperatorProcess(
            crd.operator_kubeconfig, log, namespaces=[stage.namespace], command=DYING, environment=environment
        )

    points = {"before delete GemmaFineTune", "after delete GemmaFineTune"}
    operator = start()
    try:
        stage.create(ttlAfterFinished="1s")
        stage.ends("p1", 0, PREPARED)
        stage.runs_now("t1")
        stage.wait_phase("Training")
        stage.ends("t1", 0, DONE)

        def gone() -> bool:
            nonlocal operator
            if operator.ended is not None:
                assert operator.ended == -9, operator.server.tail(40)
                operator = start()
            return stage.api.find(f"{stage.runs}/quotes") is None and points <= _lines(tmp_path / "killed")

        wait_for(gone, "the resource to go", seconds=90, detail=lambda: operator.server.tail(10))
        wait_for(lambda: stage.job_names() == [], "its Jobs to go")
        wait_for(lambda: stage.api.get(stage.pods)["items"] == [], "its pods to go")
    finally:
        operator.kill()


def _points() -> list[str]:
    """Failpoints of all writes but the deletion of the resource: there nobody is killed."""
    phases = ["", *(phase.value for phase in names.Phase)]
    writes = [*(f"apply status {phase}" for phase in phases), "create Event", "delete Job", "delete Pod"]
    writes += [f"create {kind}" for kind in ("ServiceAccount", "Role", "RoleBinding")]
    writes += [f"create Job {role.value}" for role in names.Role]
    return [f"{when} {write}" for write in writes for when in ("before", "after")]


def _kinds(points: set[str]) -> set[str]:
    """Without the ordinals: a process that is killed early makes fewer writes than an undisturbed one."""
    return {point.partition(" #")[0] for point in points}


def _lines(file: Path) -> set[str]:
    return set(file.read_text().splitlines()) if file.exists() else set()


def _run(
    crd: ControlPlane, namespace: str, folder: Path, plot: Plot, killed: Path | None = None, *, each: bool
) -> Story:
    """Plays a story under an operator that is started again whenever it has died."""
    name = f"{plot.name}-{'stormy' if killed else 'calm'}"
    environment = {ENV_PASSED: str(folder / f"passed-{name}")} | ({ENV_KILLED: str(killed)} if killed else {})
    environment |= {ENV_EACH: "1"} if each else {}

    def start() -> OperatorProcess:
        log = folder / f"{name}.log"
        return OperatorProcess(
            crd.operator_kubeconfig, log, namespaces=[namespace], command=DYING, environment=environment
        )

    operator = start()

    def revive() -> None:
        nonlocal operator
        if operator.ended is not None:
            assert operator.ended == -9, operator.server.tail(40)
            operator = start()

    def passed() -> list[str]:
        return (folder / f"passed-{name}").read_text().splitlines()

    try:
        story = Story(Stage(crd.api, namespace), plot).create().to_the_end(600 if each else 300, beside=revive)
        if killed is not None:  # the end shows in the resource a moment before its write counts as done
            wait_for(lambda: passed()[-1].startswith("after") and passed()[-1] in _lines(killed), "the last kill")
        return story
    finally:
        operator.kill()


def test_killed_while_nothing_is_written(crd: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """What happens while no operator runs is found by the next one, without any event of it."""
    stage = Stage(crd.api, namespace)
    operator = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    stage.create()
    stage.ends("p1", 0, PREPARED)
    stage.runs_now("t1")
    stage.wait_phase("Training")
    operator.kill()
    stage.ends("t1", 30, {"message": "asked to stop", "step": 3})
    wait_for(lambda: stage.job("t1")["status"].get("failed"), "the Job controller to notice")
    stage.change(limits={"maxRetries": 1})
    operator = OperatorProcess(
        crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace], arguments=["--resync", "1"]
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
    operator = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace]).ready()
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
