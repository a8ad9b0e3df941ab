"""Every row of the table of causes, provoked: it shows within five seconds, and what follows is what the table says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gemmatune_api.names import ExitCode, Reason
from gemmatune_operator.diagnose import ANSWERS
from tests.faults import ends, nodes, waits
from tests.faults.runner import LIMIT_SECONDS, Runner, percentile
from tests.faults.scene import NO_GPU, Fault, Next, Plant, Scene

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(5400)]
FAULTS = [*ends.ENDS, *waits.WAITS, *nodes.NODES]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_fault(fault: Fault, results: Runner) -> None:
    """It shows, with its words and remedy, and the next step is the table's."""
    errors = results.errors.get(fault.name, [])
    if errors:
        raise errors[0]
    assert len(results.latencies[fault.name]) == results.runs


def test_latency(results: Runner) -> None:
    """The 95th percentile over all faults, and of each one where it was provoked often enough, is within the limit."""
    every = [value for values in results.latencies.values() for value in values]
    assert every
    path = os.environ.get("FAULT_RESULTS")
    if path:
        Path(path).write_text(json.dumps(results.document(), indent=1) + "\n")
    assert percentile(every, 95) <= LIMIT_SECONDS, results.latencies
    if results.runs >= 20:
        slow = {name: values for name, values in results.latencies.items() if percentile(values, 95) > LIMIT_SECONDS}
        assert not slow


def test_a_node_that_is_being_made_shows(plant: Plant, operators: None) -> None:
    """The autoscaler's good news are an ordinary Event: they take back that no node can take the pod."""
    fault = Fault("scale-up", Reason.UNSCHEDULABLE, Next.WAITS, waits.unscheduled, NO_GPU)
    scene = Scene(plant, fault, 0)
    scene.begin()
    scene.wait(lambda it: it.get("reason") == "Unschedulable", "Unschedulable", 60)
    scene.warn("TriggeredScaleUp", "pod triggered scale-up: [{pool 0->1 (max: 4)}]", "cluster-autoscaler", "Normal")
    scene.wait(lambda it: it["reason"] == "Provisioning" and "A node is being made" in it["message"], "good news", 25)
    scene.close()


def test_every_row_is_provoked() -> None:
    """Every cause of the table stands for at least one fault, and so does every exit code of the contract.

    Kueue is played where its part is tested (tests/cluster).
    """
    causes = set(list(Reason)[: list(Reason).index(Reason.INVALID_SPEC)]) - {Reason.EVICTED_BY_QUEUE}
    assert causes <= set(ANSWERS)
    provoked = {fault.reason for fault in FAULTS}
    assert causes <= provoked, f"not provoked: {sorted(causes - provoked)}"
    names = {fault.name for fault in FAULTS}
    assert {f"exit-{int(code)}" for code in ExitCode if code is not ExitCode.DONE} <= names
    assert len(names) == len(FAULTS)
