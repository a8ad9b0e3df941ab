"""The main job on real components: kubectl, operator, Jobs, trainer on the real Gemma 3 270M, storage server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import ENV_GCS_ENDPOINT
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
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
"""


@pytest.fixture
def node(control_plane: ControlPlane, fake_gcs: FakeGcs, tmp_path: Path) -> Iterator[NodeAgent]:
    """A CPU node whose pods find the storage double, as an image of the real world would find Cloud Storage."""
    with NodeAgent(control_plane, tmp_path / "node", environment={ENV_GCS_ENDPOINT: fake_gcs.endpoint}) as agent:
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
    gemma_270m: Path,
    tmp_path: Path,
) -> None:
    rows = quote_rows()
    lines = "".join(json.dumps(row) + "\n" for row in rows[:ROWS])
    fake_gcs.client().bucket(bucket).blob("data/quotes.jsonl").upload_from_string(lines)
    manifest = RESOURCE.format(model=gemma_270m, bucket=bucket, steps=STEPS)

    operator = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace]).ready()
    try:
        crd.kubectl("apply", "-n", namespace, "-f", "-", input=manifest)

        def status() -> dict[str, Any]:
            operator.server.check()
            found: dict[str, Any] = crd.kubectl_json("get", "gft", "quotes", "-n", namespace).get("status", {})
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
    finally:
        operator.stop()
    for shown in ("Succeeded", "gemma-3-270m", "qlora", f"{STEPS}/{STEPS}"):
        assert shown in table, table
    for shown in ("Prepared", "Training", "Succeeded", "Events:"):
        assert shown in described, described

    before, after = nll_without_and_with(gemma_270m, download(fake_gcs, bucket, "runs/quotes/adapter/", tmp_path), rows)
    assert after < before - 0.3, f"NLL of held-out quotes: {before:.3f} -> {after:.3f}"


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
