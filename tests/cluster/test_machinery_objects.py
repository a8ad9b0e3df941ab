"""Objects that go, come back or are at their bounds while the operator works, and two operators by mistake."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gemmatune_api import names
from gemmatune_operator.conditions import rfc3339
from tests.support.below import PROCESS
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import MODULE, OperatorProcess
from tests.support.play import PREPARED
from tests.support.proxy import ApiProxy
from tests.support.stage import Stage
from tests.support.story import DONE, PLOTS, SIMPLE, Plot, Story
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
Start = Callable[..., OperatorProcess]


@pytest.fixture
def start(crd: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Starts operators; each must end well and without a stack in its log."""
    running: list[OperatorProcess] = []
    with ExitStack() as stack:

        def begin(
            name: str = "operator", kubeconfig: Path | None = None, command: Sequence[str] = MODULE
        ) -> OperatorProcess:
            log, reached = tmp_path / f"{name}.log", kubeconfig or crd.operator_kubeconfig
            operator = OperatorProcess(reached, log, namespaces=[namespace], command=command)
            stack.callback(operator.kill)
            running.append(operator)
            return operator.ready()

        yield begin
        for operator in running:
            assert operator.stop(30) == 0, operator.server.tail()
            assert operator.stacks() == []


def all_gone(stage: Stage) -> bool:
    return stage.api.get(stage.jobs)["items"] == [] and stage.api.get(stage.pods)["items"] == []


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
@pytest.mark.parametrize("job", ["p1", "t1"])
def test_deleted_between_a_status_write_and_a_creation(
    crd: ControlPlane, namespace: str, start: Start, propagation: str, job: str
) -> None:
    """The Job that is created for an owner who is gone already goes too, with its pod."""
    with ApiProxy(crd) as proxy:
        start(kubeconfig=proxy.kubeconfig)
        story = Story(Stage(crd.api, namespace), SIMPLE).create()
        if job == "t1":
            story.stage.job("p1")
        late = proxy.fault("POST", "/jobs$", delay=2.0)
        if job == "t1":
            story.stage.ends("p1", 0, PREPARED)
        else:
            story.stage.api.delete(f"{story.stage.runs}/quotes", {"propagationPolicy": propagation})
            wait_for(lambda: story.stage.api.find(f"{story.stage.runs}/quotes") is None, "the resource to go")
            wait_for(lambda: all_gone(story.stage), "everything to go")
            story.create()
        wait_for(lambda: late.met, "the creation to be under way")
        story.stage.api.delete(f"{story.stage.runs}/quotes", {"propagationPolicy": propagation})
        wait_for(lambda: story.stage.api.find(f"{story.stage.runs}/quotes") is None, "the resource to go")
        wait_for(lambda: proxy.count("POST", "/jobs$") >= 1, "the creation to have been sent")
        wait_for(lambda: all_gone(story.stage), "everything to go", detail=story.stage.job_names)


def test_deleted_with_orphan(crd: ControlPlane, namespace: str, start: Start) -> None:
    """Who asks to keep the Jobs keeps them: the operator touches them no more, and says whose they are."""
    start()
    story = Story(Stage(crd.api, namespace), SIMPLE).create().to("t1 runs")
    story.stage.wait_phase("Training")
    crd.kubectl("delete", "gft", "quotes", "-n", namespace, "--cascade=orphan")
    story.stage.create()
    status = story.stage.wait(lambda now: now.get("reason") == "WaitingForCleanup", "the new run to wait")
    assert "quotes-p1" in status["message"]
    assert story.stage.job_names() == ["quotes-p1", "quotes-t1"]
    for job in ("quotes-p1", "quotes-t1"):
        crd.kubectl("delete", "job", job, "-n", namespace, "--cascade=foreground")
    again = Story(story.stage, SIMPLE)
    again.to_the_end(150).check()


def test_created_again_at_once(crd: ControlPlane, namespace: str, start: Start) -> None:
    """Five resources of one name in a row: the last one runs, with its own Jobs only."""
    start()
    stage = Stage(crd.api, namespace)
    for _ in range(5):
        last = stage.create()["metadata"]["uid"]
        if _ < 4:
            stage.api.delete(f"{stage.runs}/quotes")

    def own() -> bool:
        jobs = stage.api.get(stage.jobs)["items"]
        return [job["metadata"]["ownerReferences"][0]["uid"] for job in jobs] == [last]

    wait_for(own, "the last one's preparation alone", detail=lambda: json.dumps(stage.status)[:1000])
    job = stage.job("p1")["metadata"]["uid"]

    def awaited() -> bool:
        return [pod["metadata"]["ownerReferences"][0]["uid"] for pod in stage.pods_of("p1")] == [job]

    # The Job controller counts the pods that it awaits by the Job's name: those of an earlier Job of that name can hold
    # the new one's pod back, until after five minutes it no longer waits for them.
    wait_for(
        awaited, "the preparation's own pod alone", seconds=360, detail=lambda: json.dumps(stage.pods_of("p1"))[:3000]
    )
    Story(stage, SIMPLE).to_the_end(120).check()


def test_created_again_while_it_trains(crd: ControlPlane, namespace: str, start: Start) -> None:
    start()
    story = Story(Stage(crd.api, namespace), SIMPLE).create().to("t1 runs")
    story.stage.wait_phase("Training")
    story.stage.api.delete(f"{story.stage.runs}/quotes", {"propagationPolicy": "Background"})
    uid = story.stage.create()["metadata"]["uid"]

    def owned() -> bool:
        job = story.stage.api.find(f"{story.stage.jobs}/quotes-p1")
        return job is not None and job["metadata"]["ownerReferences"][0]["uid"] == uid

    wait_for(owned, "the new preparation", detail=lambda: json.dumps(story.stage.status)[:1000])
    wait_for(lambda: story.stage.job_names() == ["quotes-p1"], "the old Jobs to go")
    wait_for(lambda: not story.stage.pods_of("t1"), "the pods of the old attempt to go")
    Story(story.stage, SIMPLE).to_the_end(120).check()


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_two_operators_by_mistake(crd: ControlPlane, namespace: str, start: Start, plot: Plot) -> None:
    """Both live, without election: nothing is doubled or lost, and no Event is repeated."""
    start("one", command=PROCESS)
    start("two", command=PROCESS)
    Story(Stage(crd.api, namespace), plot).create().to_the_end(180).check()


def test_status_at_its_bounds(crd: ControlPlane, namespace: str, start: Start) -> None:
    """More attempts than the status shows, messages of 3,500 bytes, samples at their bounds, long Events."""
    start()
    attempts = 23
    stage = Stage(crd.api, namespace)
    stage.create(limits={"maxPreemptions": 30})
    stage.ends("p1", 0, PREPARED)
    message = {"message": "中断" * 500, "remedy": "Nothing to do. " * 30, "step": 3}
    assert len(json.dumps(message, ensure_ascii=False).encode()) < 3500
    samples = [{"prompt": "引" * 2000, "before": "文" * 2000, "after": "字" * 2000} for _ in range(8)]
    for number in range(1, attempts):
        stage.runs_now(f"t{number}")
        stage.wait(lambda now: now.get("phase") == "Training", f"attempt {number} to train", 60)
        if number == 1:
            stage.trainer(samples=samples, progress={"step": 3, "totalSteps": 100})
        stage.ends(f"t{number}", 30, json.dumps(message, ensure_ascii=False))
        stage.wait(lambda now, n=number: now["counters"]["attempts"] == n + 1, f"attempt {number + 1}", 60)  # type: ignore[misc]
    stage.runs_now(f"t{attempts}")
    stage.wait_phase("Training", 60)
    stage.ends(f"t{attempts}", 0, DONE)
    status = stage.wait_phase("Succeeded", 60)
    assert [item["number"] for item in status["attempts"]] == list(range(attempts - 19, attempts + 1))
    assert status["counters"]["preemptions"] == attempts - 1
    assert len(status["samples"]) == 8, "the operator's writes leave the trainer's fields"
    long = [event for event in stage.events() if event["reason"] == "Retrying"]
    assert len(long) == attempts - 1
    assert all(1000 < len(event["message"].encode()) <= 1024 for event in long)
    assert len(stage.job_names()) == attempts + 1
    assert names.TRAINER_STATUS_FIELDS


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["an hour forward", "an hour back"])
def test_the_clock_jumps(crd: ControlPlane, namespace: str, tmp_path: Path, seconds: int) -> None:
    """Neither the deadline nor the stall time of a run that trains is thought to be over."""
    from tests.support.operator_process import DYING, ENV_CLOCK

    shift = tmp_path / "shift"
    shift.write_text("0")
    operator = OperatorProcess(
        crd.operator_kubeconfig,
        tmp_path / "operator.log",
        namespaces=[namespace],
        command=DYING,
        environment={ENV_CLOCK: str(shift)},
        arguments=["--resync", "1"],
    )
    try:
        operator.ready()
        stage = Stage(crd.api, namespace)
        story = Story(stage, SIMPLE)
        stage.create(limits={"deadline": "30m", "stallTimeout": "10m"})
        story.to("t1 runs")
        stage.wait_phase("Training")
        stage.trainer(progress={"step": 3, "tokensPerSecond": 500.0, "heartbeat": rfc3339(datetime.now(UTC))})
        shift.write_text(str(seconds))
        wait_for(lambda: "clock has jumped" in operator.server.log.read_text(), "the jump to be seen")
        looks = operator.metrics().count("\n") and _looks(operator)
        wait_for(lambda: _looks(operator) >= looks + 3, "more looks")
        assert stage.status["phase"] == "Training"
        story.to_the_end().check()
        assert operator.stop(20) == 0
        assert operator.stacks() == []
    finally:
        operator.kill()


def _looks(operator: OperatorProcess) -> float:
    line = 'gemmatune_reconciles_total{outcome="ok"} '
    return next((float(text[len(line) :]) for text in operator.metrics().splitlines() if text.startswith(line)), 0.0)
