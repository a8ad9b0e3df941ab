"""A TPU resource on the real control plane: accepted, scheduled onto a TPU node, trained, and its adapter used.

It needs no TPU: the node has the labels, the taint and the chips of a v5e host, and its trainer's four devices
are virtual ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gemmatune_api import gke
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.tpuslice import ONE_HOST, applied, downloaded, events, nodes

STEPS = 4
SECONDS = 420.0
CHIPS = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", "OMP_NUM_THREADS": "1", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
"""What stands for the four chips; compiled quickly, not well."""


@pytest.fixture
def agents(control_plane: ControlPlane, fake_gcs: FakeGcs, tmp_path: Path) -> Iterator[list[NodeAgent]]:
    """An ordinary node, and one with the chips of a TPU."""
    with nodes(control_plane, fake_gcs, tmp_path, ONE_HOST, CHIPS) as found:
        yield found


@pytest.fixture
def operator(crd: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """The operator with its usual refusals."""
    process = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    try:
        yield process.ready()
    finally:
        process.stop()
    assert process.stacks() == []


def spec_of(model: Path) -> dict[str, Any]:
    return {
        "model": {"uri": model.as_uri()},
        "lora": {"rank": 4},
        "training": {"maxSteps": STEPS, "globalBatchSize": 8, "learningRate": 5e-3, "precision": "fp32"},
        "checkpoint": {"everySteps": 2},
        "accelerator": ONE_HOST.accelerator,
    }


@pytest.mark.cluster
@pytest.mark.timeout(SECONDS + 120)
def test_a_tpu_resource_ends_with_an_adapter_for_plain_peft(
    crd: ControlPlane,
    namespace: str,
    operator: OperatorProcess,
    agents: list[NodeAgent],
    fake_gcs: FakeGcs,
    bucket: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """One v5e host by `accelerator.tpu` alone: backend xla follows from it."""
    model = tiny_model("3")
    stage = applied(crd, namespace, fake_gcs, bucket, tmp_path, spec_of(model))

    ended = stage.wait(lambda status: status.get("phase") in ("Succeeded", "Failed"), "the run to finish", SECONDS)
    _, tpu = agents
    (pod,) = stage.pods_of("t1")
    name = pod["metadata"]["name"]
    assert ended["phase"] == "Succeeded", f"{json.dumps(ended, indent=1)}\n{tpu.log(namespace, name)[-4000:]}"
    accepted = stage.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("True", "Valid")
    assert (ended["plan"]["backend"], ended["plan"]["chips"], ended["plan"]["mesh"]) == (
        "xla",
        4,
        {"data": 4, "model": 1},
    )
    assert ended["progress"]["stepText"] == f"{STEPS}/{STEPS}"
    assert ended["counters"]["attempts"] == 1
    check_pods(stage, pod)
    check_steps(tpu.log(namespace, name))
    check_adapter(model, downloaded(fake_gcs, bucket, "runs/quotes/adapter/", tmp_path / "adapter"))


def check_pods(stage: Stage, pod: Object) -> None:
    """The preparation ran on the ordinary node; the attempt on the TPU, with all its chips and the image of xla."""
    (preparation,) = stage.pods_of("p1")
    assert preparation["spec"]["nodeName"] == "cpu-1"
    assert pod["spec"]["nodeName"] == "tpu-1"
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-m", "gemmatune_trainer", "train"]
    assert "trainer-xla" in container["image"]
    assert container["resources"]["limits"][gke.TPU] == "4"
    assert {"name": "PJRT_DEVICE", "value": "TPU"} in container["env"]


def check_steps(log: str) -> None:
    """What the trainer says of its devices: four, and nothing compiled after step 2."""
    assert events(log, "model divided")[-1]["chips"] == 4
    assert events(log, "compiled")[-1]["after_step_2"] == 0


def check_adapter(model: Path, adapter: Path) -> None:
    """Plain transformers and PEFT load it, and it changes the model."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.arange(110, 150)[None]
    with torch.no_grad():
        before = base(ids).logits
        tuned = PeftModel.from_pretrained(base, adapter)
        assert tuned.peft_config["default"].r == 4
        assert (tuned(ids).logits - before).abs().max() > 1e-3
