"""The main job on real components: kubectl, operator, Jobs, trainer on the real Gemma 3 270M, storage server.

Beside it a run whose token the hub refuses; afterwards none of the tokens stands anywhere but in their Secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import ENV_GCS_ENDPOINT
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.hub import Hub
from tests.support.mlflowdouble import MlflowServer
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.planted import PLANTED, turned_up
from tests.support.quotes import quote_rows
from tests.support.wait import wait_for

STEPS = 6
ROWS = 48
HELD_OUT = 16
MINUTES = 8 * 60

RESOURCE = """
apiVersion: gemmatune.dev/v1alpha1
kind: GemmaFineTune
metadata: {{name: quotes}}
spec:
  model: {{uri: "file://{model}"}}
  dataset:
    uri: "gs://{bucket}/data/quotes.jsonl"
    text: {{template: "Quote: {{text}}\\nAuthor: {{from}}"}}
    maxLength: 128
  qlora: {{rank: 8}}
  training: {{maxSteps: {steps}, globalBatchSize: 8, learningRate: 1e-3, schedule: constant}}
  checkpoint: {{everySteps: 3}}
  output: {{uri: "gs://{bucket}/runs/quotes"}}
  samples: {{prompts: ["Quote: Imagination is"], maxNewTokens: 8}}
  accelerator: {{cpu: {{}}}}
  tracking: {{mlflow: {{uri: "{mlflow}", secretRef: {{name: keys}}}}}}
  pod: {{env: [{{name: TEAM_KEY, valueFrom: {{secretKeyRef: {{name: keys, key: TEAM_KEY}}}}}}]}}
---
apiVersion: gemmatune.dev/v1alpha1
kind: GemmaFineTune
metadata: {{name: refused}}
spec:
  model: {{uri: "hf://org/gemma-3-270m", secretRef: {{name: keys}}}}
  dataset: {{uri: "gs://{bucket}/data/quotes.jsonl", text: {{template: "{{text}}"}}}}
  output: {{uri: "gs://{bucket}/runs/refused"}}
  accelerator: {{cpu: {{}}}}
"""
SHOWN = "gft,jobs,pods,events,configmaps,services,serviceaccounts,roles,rolebindings"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that takes no token of this test."""
    with Hub("hf_another") as server:
        server.add("models", "org/gemma-3-270m", {"config.json": "{}"}, access="private")
        yield server


@pytest.fixture
def mlflow() -> Iterator[MlflowServer]:
    with MlflowServer(PLANTED["MLFLOW_TRACKING_TOKEN"]) as server:
        yield server


@pytest.fixture
def node(control_plane: ControlPlane, fake_gcs: FakeGcs, hub: Hub, tmp_path: Path) -> Iterator[NodeAgent]:
    """A CPU node whose pods find the doubles of storage and hub, as an image of the real world would find theirs."""
    environment = {ENV_GCS_ENDPOINT: fake_gcs.endpoint, **hub.environment()}
    with NodeAgent(control_plane, tmp_path / "node", environment=environment) as agent:
        yield agent


@pytest.mark.cluster
@pytest.mark.model
@pytest.mark.timeout(MINUTES + 120)
def test_from_kubectl_apply_to_a_better_model(
    crd: ControlPlane,
    fake_gcs: FakeGcs,
    bucket: str,
    namespace: str,
    node: NodeAgent,
    hub: Hub,
    mlflow: MlflowServer,
    gemma_270m: Path,
    tmp_path: Path,
) -> None:
    rows = quote_rows()
    lines = "".join(json.dumps(row) + "\n" for row in rows[:ROWS])
    fake_gcs.client().bucket(bucket).blob("data/quotes.jsonl").upload_from_string(lines)
    manifest = RESOURCE.format(model=gemma_270m, bucket=bucket, steps=STEPS, mlflow=mlflow.endpoint)
    keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": PLANTED}
    crd.api.create(f"/api/v1/namespaces/{namespace}/secrets", keys)

    operator = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace]).ready()
    try:
        crd.kubectl("apply", "-n", namespace, "-f", "-", input=manifest)

        def status(name: str = "quotes") -> dict[str, Any]:
            operator.server.check()
            found: dict[str, Any] = crd.kubectl_json("get", "gft", name, "-n", namespace).get("status", {})
            return found

        def finished() -> dict[str, Any] | None:
            now = status()
            return now if now.get("phase") in ("Succeeded", "Failed") else None

        def detail() -> str:
            return f"{json.dumps(status(), indent=1)}\n{operator.server.tail()}"

        end = wait_for(finished, "the run to finish", seconds=MINUTES, interval=0.5, detail=detail)
        assert end["phase"] == "Succeeded", detail()
        crd.kubectl("wait", "--for=condition=Finished", "gft/quotes", "-n", namespace, "--timeout=10s")
        check_status(end, bucket)
        table = crd.kubectl("get", "gft", "-n", namespace).stdout
        described = crd.kubectl("describe", "gft", "quotes", "-n", namespace).stdout
        assert status("refused")["reason"] == "AccessDenied"
        shown_of_all = dict(shown_anywhere(crd, namespace, node))
    finally:
        operator.stop()
    for shown in ("Succeeded", "gemma-3-270m", "qlora", f"{STEPS}/{STEPS}"):
        assert shown in table, table
    for shown in ("Prepared", "Training", "Succeeded", "Events:"):
        assert shown in described, described

    assert PLANTED["HF_TOKEN"] in {token for _, _, token in hub.requests}, "it was really shown"
    assert {token for _, token in mlflow.requests} == {PLANTED["MLFLOW_TRACKING_TOKEN"]}
    assert b"AccessDenied" in shown_of_all["kubectl get pods"], "termination messages are among them"
    left = {name: fake_gcs.read(bucket, name) for name in fake_gcs.names(bucket, "")}
    assert turned_up([*shown_of_all.items(), *left.items(), ("the operator", operator.server.log.read_bytes())]) == []

    before, after = nll_without_and_with(gemma_270m, download(fake_gcs, bucket, "runs/quotes/adapter/", tmp_path), rows)
    assert after < before - 0.3, f"NLL of held-out quotes: {before:.3f} -> {after:.3f}"


def shown_anywhere(crd: ControlPlane, namespace: str, node: NodeAgent) -> Iterator[tuple[str, bytes]]:
    """What whoever may not read Secrets can see of the namespace."""
    for kind in SHOWN.split(","):
        found = crd.kubectl("get", kind, "-n", namespace, "-o", "json", "--show-managed-fields").stdout
        yield f"kubectl get {kind}", found.encode()
        if kind == "pods":
            for pod in json.loads(found)["items"]:
                name = pod["metadata"]["name"]
                yield f"kubectl logs {name}", node.log(namespace, name).encode()


def check_status(end: dict[str, Any], bucket: str) -> None:
    """What the status says of a finished run."""
    assert end["progress"]["step"] == STEPS
    assert end["progress"]["stepText"] == f"{STEPS}/{STEPS}"
    assert end["progress"]["loss"] < end["progress"]["historyLoss"][0]
    assert end["checkpoint"]["step"] == STEPS
    assert end["data"]["rows"] == ROWS
    assert end["plan"]["method"] == "qlora"
    assert end["counters"]["attempts"] == 1
    assert end["samples"][0]["prompt"] == "Quote: Imagination is"
    assert end["samples"][0]["before"]
    assert end["samples"][0]["after"]
    assert end["artifacts"]["adapter"] == f"gs://{bucket}/runs/quotes/adapter"


def download(fake_gcs: FakeGcs, bucket: str, prefix: str, folder: Path) -> Path:
    """The objects below a prefix, as files."""
    adapter = folder / "adapter"
    adapter.mkdir()
    for name in fake_gcs.names(bucket, prefix):
        (adapter / name.removeprefix(prefix)).write_bytes(fake_gcs.read(bucket, name))
    return adapter


def nll_without_and_with(model_path: Path, adapter: Path, rows: list[dict[str, str]]) -> tuple[float, float]:
    """Mean NLL per token of held-out quotes, of the base model and with the adapter, by plain transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    texts = [f"Quote: {row['text']}\nAuthor: {row['from']}" for row in rows[-HELD_OUT:]]

    def nll(model: torch.nn.Module) -> float:
        total = tokens = 0.0
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        return total / tokens

    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16).eval()
    before = nll(base)
    return before, nll(PeftModel.from_pretrained(base, str(adapter)).eval())
