"""TPU resources of backend keras on the real control plane: one host, and a slice of two, which loses one in a soak.

They need no TPU: the nodes have the labels, the taint and the chips of v5e hosts, and the four devices of each trainer
are virtual ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmatune_api import gke, names
from gemmatune_api.runconfig import RunConfig
from tests.keras.conftest import device_environment, torch_python
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.plainlogits import plain_logits
from tests.support.soak import SOAK, only_in_soak
from tests.support.stage import Stage
from tests.support.tpuslice import ONE_HOST, TWO_HOSTS, Slice, applied, downloaded, events, nodes
from tests.support.trainerhost import TrainerHost

pytestmark = pytest.mark.cluster

SECONDS = 420.0
STEPS = 4
CHIPS = {**device_environment(4), "OMP_NUM_THREADS": "1"}
"""What stands for the four chips of a host; compiled quickly, not well."""


@pytest.fixture
def operator(crd: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """The operator with its usual refusals."""
    process = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    try:
        yield process.ready()
    finally:
        process.stop()
    assert process.stacks() == []


@pytest.fixture
def agents(
    request: pytest.FixtureRequest, control_plane: ControlPlane, fake_gcs: FakeGcs, tmp_path: Path
) -> Iterator[list[NodeAgent]]:
    """An ordinary node, and those of the test's slice."""
    with nodes(control_plane, fake_gcs, tmp_path, request.param, CHIPS) as found:
        yield found


def spec_of(model: Path, found: Slice, steps: int, mesh: dict[str, int] | None) -> dict[str, Any]:
    return {
        "backend": "keras",
        "model": {"uri": model.as_uri()},
        "lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]},
        "training": {"maxSteps": steps, "globalBatchSize": 8, "learningRate": 5e-3, "precision": "fp32"},
        "checkpoint": {"everySteps": 2},
        "accelerator": found.accelerator,
        **({"mesh": mesh} if mesh else {}),
    }


def told(stage: Stage, agents: list[NodeAgent]) -> str:
    """Status and the ends of the logs, for a test that fails."""
    logs = [
        agent.log(stage.namespace, pod["metadata"]["name"])[-3000:]
        for agent in agents[1:]
        for attempt in ("t1", "t2")
        for pod in stage.pods_of(attempt)
        if pod["spec"].get("nodeName") == agent.name
    ]
    return "\n".join([json.dumps(stage.status, indent=1), *logs])


def finished(stage: Stage, agents: list[NodeAgent]) -> Object:
    """The status at the run's good end."""
    ended = stage.wait(lambda status: status.get("phase") in ("Succeeded", "Failed"), "the run to finish", SECONDS)
    assert ended["phase"] == "Succeeded", told(stage, agents)
    return ended


@pytest.mark.parametrize("agents", [ONE_HOST], indirect=True, ids=["2x2"])
@pytest.mark.timeout(SECONDS + 120)
@only_in_soak  # CI shows the same with two hosts
def test_a_slice_of_one_host(
    crd: ControlPlane,
    namespace: str,
    operator: OperatorProcess,
    agents: list[NodeAgent],
    fake_gcs: FakeGcs,
    bucket: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Accepted, scheduled onto the TPU, trained on its four devices, and an adapter that plain PEFT takes."""
    model = tiny_model("2")
    spec = spec_of(model, ONE_HOST, STEPS, None)
    stage = applied(crd, namespace, fake_gcs, bucket, tmp_path, spec)
    ended = finished(stage, agents)
    assert ended["plan"]["mesh"] == {"data": 4, "model": 1}
    # Two layers: queries have four heads, values two; hidden size 64, heads of 16.
    assert ended["plan"]["trainableParameters"] == 2 * 4 * ((4 * 64 + 16) + (2 * 64 + 16))
    assert ended["plan"]["exportedParameters"] == 2 * 4 * (4 * (64 + 64) + 2 * (64 + 32))
    (pod,) = stage.pods_of("t1")
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-m", "gemmatune_trainer", "train"]
    check_container(pod, "tpu-1")
    check_adapter(model, downloaded(fake_gcs, bucket, "runs/quotes/adapter/", tmp_path / "adapter"), tmp_path)


@pytest.mark.parametrize("agents", [TWO_HOSTS], indirect=True, ids=["2x4"])
@pytest.mark.timeout(SECONDS + 120)
def test_a_slice_of_two_hosts(
    crd: ControlPlane,
    namespace: str,
    operator: OperatorProcess,
    agents: list[NodeAgent],
    fake_gcs: FakeGcs,
    bucket: str,
    tiny_model: Callable[[str], Path],
    trainer_host: TrainerHost,
    tmp_path: Path,
) -> None:
    """An Indexed Job of two pods trains on eight devices what one process does, the losses within 1e-5.

    In a soak SIGKILL ends the second pod on the way: that ends the attempt, and the next one goes on.
    """
    model, steps, attempts = tiny_model("2"), 80 if SOAK else STEPS, 2 if SOAK else 1
    mesh = {"data": 2, "model": 4}
    stage = applied(crd, namespace, fake_gcs, bucket, tmp_path, spec_of(model, TWO_HOSTS, steps, mesh))
    stage.wait(lambda status: (status.get("checkpoint") or {}).get("step"), "a checkpoint", SECONDS)
    first, second = sorted(stage.pods_of("t1"), key=lambda pod: str(pod["metadata"]["name"]))
    assert {pod["spec"]["nodeName"] for pod in (first, second)} == {"tpu-1", "tpu-2"}
    for pod in (first, second):
        check_container(pod, pod["spec"]["nodeName"])
    by_node = {agent.name: agent for agent in agents}
    if SOAK:
        by_node[second["spec"]["nodeName"]].kill(namespace, second["metadata"]["name"])

    ended = finished(stage, agents)
    assert len(ended["attempts"]) == attempts
    if SOAK:
        lost, last = ended["attempts"]
        assert (lost["reason"], lost["counted"]) == ("Killed", True)
        assert last["fromStep"] >= 2
    assert ended["progress"]["stepText"] == f"{steps}/{steps}"
    assert (ended["plan"]["hosts"], ended["plan"]["chips"], ended["plan"]["mesh"]) == (2, 8, mesh)
    # Two layers: queries have four heads, values two; hidden size 64, heads of 16.
    assert ended["plan"]["trainableParameters"] == 2 * 4 * ((4 * 64 + 16) + (2 * 64 + 16))
    assert ended["plan"]["exportedParameters"] == 2 * 4 * (4 * (64 + 64) + 2 * (64 + 32))
    leader, follower = (
        by_node[pod["spec"]["nodeName"]].log(namespace, pod["metadata"]["name"]) for pod in (first, second)
    )
    assert events(leader, "placed")[0]["mesh"] == "data 2 x model 4"
    assert events(leader, "checkpoint saved")
    assert not events(follower, "checkpoint saved")
    check_adapter(model, downloaded(fake_gcs, bucket, "runs/quotes/adapter/", tmp_path / "adapter"), tmp_path)
    newest = max(name for name in fake_gcs.names(bucket, "runs/quotes/checkpoints/") if name.endswith("/history.json"))
    together = losses(fake_gcs.read(bucket, newest))
    assert len(together) == steps
    assert together == pytest.approx(alone(trainer_host, fake_gcs, first, tmp_path / "alone"), rel=1e-5)


def losses(history: bytes) -> list[float]:
    """Losses of all steps, unrounded, as a checkpoint has them."""
    return [point["loss"] for point in json.loads(history)["points"]]


def alone(host: TrainerHost, fake_gcs: FakeGcs, pod: Object, folder: Path) -> list[float]:
    """Losses of what a pod's trainer was told, by one process that has all eight devices."""
    (container,) = pod["spec"]["containers"]
    (told,) = [item["value"] for item in container["env"] if item["name"] == names.ENV_RUN]
    config = RunConfig.from_env(told)
    output = config.output.model_copy(update={"uri": (folder / "out").as_uri()})
    environment = {**device_environment(8), names.ENV_GCS_ENDPOINT: fake_gcs.endpoint}
    for role in ("prepare", "train"):
        done = host.run(role, config.model_copy(update={"output": output}), folder / role, environment)
        assert done.poll() == names.ExitCode.DONE, done.log()
    newest = max((folder / "out" / "checkpoints").iterdir())
    return losses((newest / "history.json").read_bytes())


def check_container(pod: Object, node: str) -> None:
    """It runs on a TPU's node, with all chips of it and the image of keras."""
    assert pod["spec"]["nodeName"] == node
    (container,) = pod["spec"]["containers"]
    assert "trainer-keras" in container["image"]
    assert container["resources"]["limits"][gke.TPU] == "4"
    assert {"name": "KERAS_BACKEND", "value": "jax"} in container["env"]
    assert {"name": "JAX_PLATFORMS", "value": "tpu,cpu"} in container["env"], "which the node's `hardware` overrides"
    assert "XLA_FLAGS" not in {item["name"] for item in container["env"]}


def check_adapter(model: Path, adapter: Path, folder: Path) -> None:
    """Plain transformers and PEFT load it, and it changes the model."""
    before, after = plain_logits(torch_python(), model, adapter, range(110, 150), folder)
    assert np.abs(after - before).max() > 1e-3
