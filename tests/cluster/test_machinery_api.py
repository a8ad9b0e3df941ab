"""An API server that refuses, loses answers, breaks connections or swallows events: every run ends as undisturbed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.below import PROCESS
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.proxy import ApiProxy, Fault
from tests.support.soak import only_in_soak
from tests.support.stage import Stage
from tests.support.story import FALLBACK, INTERRUPTED, MERGED, SIMPLE, WIDE, Story
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
WRITES = {
    "status": ("PATCH", "/gemmafinetunes/quotes/status$"),
    "create Job": ("POST", "/jobs$"),
    "delete Job": ("DELETE", "/jobs/"),
    "create ServiceAccount": ("POST", "/serviceaccounts$"),
    "create Role": ("POST", "/roles$"),
    "create RoleBinding": ("POST", "/rolebindings$"),
    "create Event": ("POST", "/events$"),
}
Start = Callable[..., OperatorProcess]


@pytest.fixture
def proxy(crd: ControlPlane) -> Iterator[ApiProxy]:
    with ApiProxy(crd) as running:
        yield running


@pytest.fixture
def operator(proxy: ApiProxy, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator behind the proxy; it must end well and without a stack in its log."""
    process = OperatorProcess(
        proxy.kubeconfig, tmp_path / "operator.log", namespaces=[namespace], arguments=["--resync", "5"]
    )
    try:
        yield process.ready()
        assert process.probe("healthz") == 200
        proxy.mend()
        assert process.stop(30) == 0, process.server.tail()
        assert process.stacks() == []
    finally:
        process.kill()


@pytest.fixture
def story(crd: ControlPlane, operator: OperatorProcess, namespace: str, request: pytest.FixtureRequest) -> Story:
    """A story whose resource does not exist yet; another plot comes by `indirect`."""
    return Story(Stage(crd.api, namespace), getattr(request, "param", INTERRUPTED))


def disturb(proxy: ApiProxy, **how: object) -> dict[str, Fault]:
    """The first two requests of every kind of write."""
    return {what: proxy.fault(method, path, times=2, **how) for what, (method, path) in WRITES.items()}


CODES = pytest.mark.parametrize(
    ("code", "retry_after"), [(409, None), (429, 1), (500, None)], ids=["409", "429 with Retry-After", "500"]
)


@CODES
@pytest.mark.parametrize(
    "story", [INTERRUPTED, pytest.param(MERGED, marks=only_in_soak)], indirect=True, ids=lambda plot: plot.name
)
def test_every_kind_of_write_is_refused(proxy: ApiProxy, story: Story, code: int, retry_after: int | None) -> None:
    faults = disturb(proxy, code=code, retry_after=retry_after)
    story.create().to_the_end(180).check()
    assert [what for what, fault in faults.items() if fault.met == 0] == [], "a write that was not disturbed"


@CODES
def test_rarer_writes_are_refused(
    proxy: ApiProxy, crd: ControlPlane, namespace: str, tmp_path: Path, code: int, retry_after: int | None
) -> None:
    """Services of attempts on two nodes, and pods that outlived their Job."""
    how = {"code": code, "retry_after": retry_after, "times": 2}
    faults = [proxy.fault("POST", "/services$", **how), proxy.fault("DELETE", "/pods/", **how)]
    log = tmp_path / "operator.log"
    operator = OperatorProcess(proxy.kubeconfig, log, namespaces=[namespace], command=PROCESS).ready()
    try:
        Story(Stage(crd.api, namespace), WIDE).create().to_the_end(180).check()
        assert [fault.met for fault in faults] == [2, 2]
        services = crd.api.get(f"/api/v1/namespaces/{namespace}/services")["items"]
        assert sorted(item["metadata"]["name"] for item in services) == ["quotes-t1", "quotes-t2"]
        assert operator.stop(30) == 0
        assert operator.stacks() == []
    finally:
        operator.kill()


def test_every_kind_of_write_loses_its_answer(proxy: ApiProxy, story: Story) -> None:
    """The API server has done what was asked, but nobody hears of it: the repetition must change nothing."""
    faults = disturb(proxy, lose_answer=True)
    story.create().to_the_end(180).check()
    assert [what for what, fault in faults.items() if fault.met == 0] == []


def test_nothing_can_be_written_for_a_while(proxy: ApiProxy, story: Story, operator: OperatorProcess) -> None:
    """All writes fail until a look has failed for good; then they work again."""
    story.create().to("t1 runs")
    fault = proxy.fault("PATCH", "/status$", times=10_000, code=503)
    story.stage.ends("t1", 30, {"message": "asked to stop", "step": 7})
    story.done.append("t1 exits 30")
    wait_for(lambda: fault.met >= 5, "the repetitions")
    proxy.mend()
    story.to_the_end(180).check()
    lines = [json.loads(line) for line in operator.server.log.read_text().splitlines()]
    failed = [line for line in lines if line["event"] == "look failed"]
    assert failed
    assert {(line["namespace"], line["run"]) for line in failed} == {(story.stage.namespace, "quotes")}


def test_connections_break_again_and_again(proxy: ApiProxy, story: Story) -> None:
    last = time.monotonic()

    def cut() -> None:
        nonlocal last
        if time.monotonic() - last > 2.0:
            last = time.monotonic()
            proxy.cut()
            proxy.refusing = False

    story.create().to_the_end(180, beside=cut).check()


def test_events_are_swallowed(proxy: ApiProxy, story: Story) -> None:
    """No event of any watch arrives: the resync finds everything."""
    proxy.deaf = "."
    story.create().to_the_end(240).check()


def test_slow_answers(proxy: ApiProxy, crd: ControlPlane, operator: OperatorProcess, namespace: str) -> None:
    """Every write takes a second longer, while the trainer writes in between (oftener than its one write in 10 s)."""
    for method, path in WRITES.values():
        proxy.fault(method, path, times=10_000, delay=1.0)
    story = Story(Stage(crd.api, namespace), FALLBACK).create()
    step, last = 0, time.monotonic()

    def trainer() -> None:
        nonlocal step, last
        if story.done and story.done[-1].endswith("runs") and time.monotonic() - last > 3.0:
            step, last = step + 1, time.monotonic()
            story.stage.trainer(progress={"step": step, "totalSteps": 100})

    story.to_the_end(240, beside=trainer).check()


def test_the_api_server_is_restarted(crd: ControlPlane, operator: OperatorProcess, namespace: str) -> None:
    """Twice in the middle of a run; the operator behind the proxy sees refused and broken connections."""
    story = Story(Stage(crd.api, namespace), SIMPLE).create()
    for step in ("p1 exits 0", "t1 runs"):
        story.to(step)
        job = story.stage.job(step.split()[0])["metadata"]["name"]
        wait_for(
            lambda job=job: crd.api.get(f"{story.stage.jobs}/{job}").get("status", {}).get("active") != 0,  # type: ignore[misc]
            "the Job controller to know the pod",
        )
        crd.restart_apiserver()
    story.to_the_end(180).check()


def test_it_starts_while_the_api_server_is_away(
    crd: ControlPlane, proxy: ApiProxy, namespace: str, tmp_path: Path
) -> None:
    """It is alive and not ready; when the server is there, the same process begins."""
    proxy.refusing = True
    process = OperatorProcess(proxy.kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    try:
        wait_for(lambda: "not listed" in process.server.log.read_text(), "its first try", detail=process.server.tail)
        assert (process.probe("healthz"), process.probe("readyz")) == (200, 503)
        proxy.mend()
        process.ready()
        Story(Stage(crd.api, namespace), SIMPLE).create().to_the_end().check()
        assert process.stop(30) == 0
        assert process.stacks() == []
    finally:
        process.kill()


def test_what_vanishes_between_two_lists(crd: ControlPlane, proxy: ApiProxy, namespace: str, tmp_path: Path) -> None:
    """A Job goes after the operator's list and before kopf's: no watch tells of it, and the resync is minutes away."""
    stage = Stage(crd.api, namespace)
    first = OperatorProcess(crd.operator_kubeconfig, tmp_path / "first.log", namespaces=[namespace]).ready()
    try:
        stage.create()
        stage.to_training()
    finally:
        first.kill()
    proxy.deaf = "."
    second = OperatorProcess(proxy.kubeconfig, tmp_path / "second.log", namespaces=[namespace]).ready()
    try:
        crd.api.delete(f"{stage.jobs}/quotes-t1", {"propagationPolicy": "Background"})
        wait_for(lambda: stage.api.find(f"{stage.jobs}/quotes-t1") is None, "the Job to go unseen")
        proxy.mend()
        stage.wait(lambda status: len(status["attempts"]) == 2, "attempt 2", seconds=60)
        assert second.stop(30) == 0
        assert second.stacks() == []
    finally:
        second.kill()
