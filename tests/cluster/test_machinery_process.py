"""The operator's process: two replicas and one Lease, graceful ends, liveness, metrics, logs and Events."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support import chart
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import DYING, ENV_HANG, OperatorProcess
from tests.support.proxy import ApiProxy
from tests.support.stage import Stage
from tests.support.story import INTERRUPTED, SIMPLE, Story, prepared, runs
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
LEASE, RENEW, RETRY = 6.0, 4.0, 1.0
Start = Callable[..., OperatorProcess]


@pytest.fixture
def start(crd: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Starts operators of this namespace; none survives the test."""
    with ExitStack() as stack:

        def begin(
            name: str = "operator", *arguments: str, kubeconfig: Path | None = None, **how: Any
        ) -> OperatorProcess:
            operator = OperatorProcess(
                kubeconfig or crd.operator_kubeconfig,
                tmp_path / f"{name}.log",
                namespaces=[namespace],
                arguments=arguments,
                **how,
            )
            stack.callback(operator.kill)
            return operator

        yield begin


@pytest.fixture
def candidate(start: Start) -> Start:
    """Starts operators that elect a leader."""
    times = [f"--lease-duration={LEASE}", f"--renew-deadline={RENEW}", f"--retry-period={RETRY}"]

    def begin(name: str, **how: Any) -> OperatorProcess:
        return start(name, "--leader-elect", f"--lease-namespace={chart.NAMESPACE}", *times, **how)

    return begin


def leads(operator: OperatorProcess) -> bool:
    return "gemmatune_leader 1.0" in operator.metrics()


def elected(*operators: OperatorProcess, seconds: float = 60.0) -> OperatorProcess:
    """Waits until one of them leads."""

    def look() -> OperatorProcess | None:
        return next((each for each in operators if each.probe("readyz") == 200 and leads(each)), None)

    found = wait_for(look, "a leader", seconds=seconds, detail=lambda: [each.server.tail(5) for each in operators])
    assert found is not None
    return found


def lines(operator: OperatorProcess) -> list[dict[str, Any]]:
    """The log."""
    found = []
    for line in operator.server.log.read_text().splitlines():
        assert line.startswith("{"), f"no structured line: {line}"
        found.append(json.loads(line))
    return found


def test_the_leader_is_killed(crd: ControlPlane, namespace: str, candidate: Start) -> None:
    """Two replicas: the standby is alive and ready, and goes on with the run within lease and retry, nothing twice."""
    one, two = candidate("one"), candidate("two")
    leader = elected(one, two)
    standby = two if leader is one else one
    wait_for(lambda: standby.probe("readyz") == 200, "the standby to have read the Lease", detail=standby.server.tail)
    assert not leads(standby)
    assert standby.probe("healthz") == 200
    story = Story(Stage(crd.api, namespace), INTERRUPTED).create().to("t1 runs")
    leader.kill()
    killed = time.monotonic()
    elected(standby)
    took = time.monotonic() - killed
    assert took < LEASE + RETRY + 3.0, f"the standby took over after {took:.1f} s"
    story.to_the_end(seconds=180).check()
    assert standby.stop(20) == 0
    assert standby.stacks() == []
    lease = crd.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{chart.NAMESPACE}/leases/gemmatune-operator")
    assert lease["spec"]["holderIdentity"] == ""


def test_a_leader_that_stood_still_writes_nothing_more(crd: ControlPlane, namespace: str, candidate: Start) -> None:
    """A frozen leader wakes up after another has taken over: it ends, and everything was written once."""
    one = elected(candidate("one"))
    story = Story(Stage(crd.api, namespace), INTERRUPTED).create().to("t1 runs")
    two = candidate("two")
    wait_for(lambda: two.probe("readyz") == 200, "the standby", detail=two.server.tail)
    os.kill(one.server.process.pid, signal.SIGSTOP)
    story.stage.ends("t1", 30, {"message": "asked to stop", "step": 7})
    story.done.append("t1 exits 30")
    elected(two)
    os.kill(one.server.process.pid, signal.SIGCONT)
    wait_for(lambda: one.ended is not None, "the old leader to end", detail=one.server.tail)
    assert one.ended == 1
    assert "the operator cannot go on" in one.server.tail()
    assert one.stacks() == []
    story.to_the_end(seconds=180).check()


def test_the_lease_cannot_be_renewed(crd: ControlPlane, namespace: str, candidate: Start) -> None:
    """Only the Lease fails: the leader ends by itself before another may take over."""
    with ApiProxy(crd) as proxy:
        operator = elected(candidate("one", kubeconfig=proxy.kubeconfig))
        proxy.fault("PUT", "/leases/", times=10_000, code=500)
        began = time.monotonic()
        wait_for(lambda: operator.ended is not None, "the leader to give up", detail=operator.server.tail)
        assert operator.ended == 1
        assert time.monotonic() - began < LEASE + 3.0
        assert "was not renewed within 4 s" in operator.server.tail()


def test_a_graceful_stop_hands_over_at_once(crd: ControlPlane, namespace: str, candidate: Start) -> None:
    one = elected(candidate("one"))
    two = candidate("two")
    wait_for(lambda: two.probe("readyz") == 200, "the standby", detail=two.server.tail)
    began = time.monotonic()
    assert one.stop(20) == 0
    stopped = time.monotonic()
    elected(two)
    assert time.monotonic() - stopped < LEASE, "a released Lease needs no waiting"
    assert stopped - began < 8.0
    assert two.stop(20) == 0


def test_a_standby_stops_at_once(namespace: str, candidate: Start) -> None:
    elected(candidate("one"))
    two = candidate("two")
    wait_for(lambda: two.probe("readyz") == 200, "the standby", detail=two.server.tail)
    began = time.monotonic()
    assert two.stop(20) == 0
    assert time.monotonic() - began < 5.0


def test_it_stops_while_the_api_server_is_silent(crd: ControlPlane, namespace: str, candidate: Start) -> None:
    """SIGTERM with a look under way that gets no answer: exit 0 within seconds all the same."""
    with ApiProxy(crd) as proxy:
        operator = elected(candidate("one", kubeconfig=proxy.kubeconfig))
        story = Story(Stage(crd.api, namespace), SIMPLE).create().to("t1 runs")
        proxy.silent = True
        asked = len(proxy.requests)
        story.stage.annotate("wake up")
        story.stage.change(limits={"maxRetries": 1})
        proxy.cut()
        proxy.refusing = False
        wait_for(lambda: len(proxy.requests) > asked, "an unanswered request")
        began = time.monotonic()
        assert operator.stop(30) == 0, operator.server.tail()
        assert time.monotonic() - began < 15.0
        assert operator.stacks() == []


def test_it_stops_while_it_starts(crd: ControlPlane, start: Start) -> None:
    """SIGTERM before the API server has answered anything."""
    with ApiProxy(crd) as proxy:
        proxy.silent = True
        operator = start(kubeconfig=proxy.kubeconfig)
        wait_for(lambda: proxy.requests, "its first request", detail=operator.server.tail)
        assert (operator.probe("healthz"), operator.probe("readyz")) == (200, 503)
        began = time.monotonic()
        assert operator.stop(30) == 0, operator.server.tail()
        assert time.monotonic() - began < 10.0


def test_a_look_under_way_is_finished(crd: ControlPlane, namespace: str, start: Start) -> None:
    """SIGTERM between a status write and the creation that follows it: both are done."""
    with ApiProxy(crd) as proxy:
        operator = start(kubeconfig=proxy.kubeconfig).ready()
        slow = proxy.fault("POST", "/jobs$", delay=1.5)
        stage = Stage(crd.api, namespace)
        stage.create()
        wait_for(lambda: slow.met, "the creation to be under way")
        assert operator.stop(20) == 0
        assert stage.job_names() == ["quotes-p1"]


@pytest.mark.parametrize(
    ("how", "words"),
    [("look", "a look has taken"), ("loop", "the event loop has stood still"), ("worker", "workers have died")],
)
def test_liveness(crd: ControlPlane, namespace: str, start: Start, how: str, words: str) -> None:
    """A hung look, a blocked event loop and a dead worker fail the probe; idle workers do not."""
    operator = start(command=DYING, environment={ENV_HANG: how}).ready()
    assert operator.probe("healthz") == 200
    Stage(crd.api, namespace).create()
    wait_for(lambda: operator.probe("healthz") == 503, f"the probe to fail ({how})", detail=operator.server.tail)
    assert words in operator.probe_text("healthz")
    assert operator.metrics(), "metrics are served all the same"


def test_what_a_run_leaves_behind(crd: ControlPlane, namespace: str, start: Start) -> None:
    """Metrics, one log line per transition, the run's key on every line of a look, Events without repeats."""
    operator = start("operator", "--trainer-env=TRACKER_TOKEN=s3cr3t-value").ready()
    story = Story(Stage(crd.api, namespace), INTERRUPTED).create().to_the_end()
    story.check()
    text = operator.metrics()
    for line in (
        'gemmatune_runs{phase="Succeeded"} 1.0',
        'gemmatune_attempts_ended_total{cause="Interrupted"} 1.0',
        'gemmatune_attempts_ended_total{cause="Suspended"} 1.0',
        'gemmatune_attempts_ended_total{cause="Completed"} 1.0',
        "gemmatune_queue_depth 0.0",
        "gemmatune_leader 1.0",
    ):
        assert f"{line}\n" in text, text
    seconds = re.findall(r'gemmatune_accelerator_seconds_total\{outcome="(\w+)",type="nvidia-l4"\} ([\d.]+)', text)
    assert {outcome for outcome, _ in seconds} == {"Interrupted", "Suspended", "Completed"}
    assert 'gemmatune_api_requests_total{code="201",kind="Job",verb="create"} 4.0' in text
    found = lines(operator)
    looks = [line for line in found if line.get("event") in ("transition", "attempt ended", "look failed")]
    assert all((line["namespace"], line["run"]) == (namespace, "quotes") for line in looks)
    changes = [(line["before"], line["after"]) for line in looks if line["event"] == "transition"]
    phases = [after for before, after in changes if before != after]
    assert phases[0] == "Preparing"
    assert phases[-1] == "Succeeded"
    assert all(left[1] == right[0] for left, right in itertools.pairwise(changes)), "no line is missing"
    log = operator.server.log.read_text()
    assert "s3cr3t-value" not in log
    events = Counter((event["reason"], event["message"]) for event in story.stage.events())
    operator.kill()
    again = start("again").ready()
    wait_for(lambda: 'gemmatune_reconciles_total{outcome="ok"}' in again.metrics(), "a look after the restart")
    assert Counter((event["reason"], event["message"]) for event in story.stage.events()) == events
    text = again.metrics()
    assert 'gemmatune_runs{phase="Succeeded"} 1.0' in text
    counted = [line for line in text.splitlines() if line.startswith("gemmatune_attempts_ended_total{")]
    assert [line for line in counted if not line.endswith(" 0.0")] == [], "a restart counts nothing again"
    assert again.stop(20) == 0


def test_progress_is_cheap(crd: ControlPlane, namespace: str, start: Start) -> None:
    """Progress writes of a trainer cause no request of the operator."""
    operator = start().ready()
    story = Story(Stage(crd.api, namespace), SIMPLE).create()
    for step in (prepared(), runs("t1")):
        story.to(step.what)
    story.stage.wait_phase("Training")

    def requests() -> list[str]:
        return sorted(
            line for line in operator.metrics().splitlines() if line.startswith("gemmatune_api_requests_total")
        )

    def settled() -> bool:
        before = requests()
        time.sleep(0.5)
        return requests() == before

    # At its start and once more when it has settled, everything is listed.
    wait_for(lambda: any('kind="Pod"' in line and line.endswith(" 2.0") for line in requests()), "the second list")
    wait_for(settled, "the operator to be quiet")
    before = requests()
    for step in range(50):
        story.stage.trainer(progress={"step": step, "totalSteps": 100, "heartbeat": f"2026-03-01T12:00:{step:02d}Z"})
    wait_for(settled, "the operator to have seen the last write")
    assert requests() == before
    assert operator.stop(20) == 0
