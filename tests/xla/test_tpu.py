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

from gemmatune_api import gke, names
from gemmatune_api.names import ENV_GCS_ENDPOINT
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.trainer.conftest import write_quotes

STEPS = 4
SECONDS = 420.0
HOST = {gke.TPU_TYPE: "tpu-v5-lite-podslice", gke.TPU_TOPOLOGY: "2x2", gke.ACCELERATOR_COUNT: "4"}
"""Labels of a node of machine type ct5lp-hightpu-4t."""
MACHINE = {"cpu": "112", "memory": "192Gi", gke.TPU: "4"}
CHIPS = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", "OMP_NUM_THREADS": "1", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
"""What stands for the four chips; compiled quickly, not well."""


@pytest.fixture
def nodes(control_plane: ControlPlane, fake_gcs: FakeGcs, tmp_path: Path) -> Iterator[tuple[NodeAgent, NodeAgent]]:
    """An ordinary node, and one with the chips of a TPU; both find the storage double."""
    storage = {ENV_GCS_ENDPOINT: fake_gcs.endpoint}
    taint = {"key": gke.TPU, "value": "present", "effect": "NoSchedule"}
    cpu = NodeAgent(control_plane, tmp_path / "cpu", "cpu-1", environment=storage, hardware=CHIPS)
    tpu = NodeAgent(
        control_plane,
        tmp_path / "tpu",
        "tpu-1",
        resources=MACHINE,
        labels=HOST,
        taints=[taint],
        environment=storage,
        hardware=CHIPS,
    )
    with cpu, tpu:
        yield cpu, tpu


@pytest.fixture
def operator(crd: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """The operator with its usual refusals."""
    process = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    try:
        yield process.ready()
    finally:
        process.stop()
    assert process.stacks() == []


def spec_of(model: Path, bucket: str) -> dict[str, Any]:
    return {
        "model": {"uri": model.as_uri()},
        "dataset": {
            "uri": f"gs://{bucket}/data/quotes.jsonl",
            "text": {"template": "Quote: {text}\nAuthor: {from}"},
            "maxLength": 128,
        },
        "lora": {"rank": 4},
        "training": {"maxSteps": STEPS, "globalBatchSize": 8, "learningRate": 5e-3, "precision": "fp32"},
        "checkpoint": {"everySteps": 2},
        "output": {"uri": f"gs://{bucket}/runs/quotes"},
        "accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}},
    }


def downloaded(fake_gcs: FakeGcs, bucket: str, prefix: str, folder: Path) -> Path:
    """The objects below a prefix, as files."""
    folder.mkdir()
    for name in fake_gcs.names(bucket, prefix):
        (folder / name.removeprefix(prefix)).write_bytes(fake_gcs.read(bucket, name))
    return folder


@pytest.mark.cluster
@pytest.mark.timeout(SECONDS + 120)
def test_a_tpu_resource_ends_with_an_adapter_for_plain_peft(
    crd: ControlPlane,
    namespace: str,
    operator: OperatorProcess,
    nodes: tuple[NodeAgent, NodeAgent],
    fake_gcs: FakeGcs,
    bucket: str,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """One v5e host by `accelerator.tpu` alone: backend xla follows from it."""
    model = tiny_model("3")
    rows = write_quotes(tmp_path / "quotes.jsonl").read_bytes()
    fake_gcs.client().bucket(bucket).blob("data/quotes.jsonl").upload_from_string(rows)
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "quotes"}}
    crd.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps({**document, "spec": spec_of(model, bucket)}))
    stage = Stage(crd.api, namespace)

    ended = stage.wait(lambda status: status.get("phase") in ("Succeeded", "Failed"), "the run to finish", SECONDS)
    _, tpu = nodes
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
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    by_name = {event["event"]: event for event in events}
    assert by_name["model divided"]["chips"] == 4
    assert by_name["compiled"]["after_step_2"] == 0


def check_adapter(model: Path, adapter: Path) -> None:
    """Plain transformers and PEFT load it, and it changes the model."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.arange(110, 150)[None]
    with torch.no_grad():
        before = base(ids).logits
        tuned = PeftModel.from_pretrained(base, adapter)
        assert tuned.peft_config["default"].r == 4
        assert (tuned(ids).logits - before).abs().max() > 1e-3
