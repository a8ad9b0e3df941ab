"""Runs of a trainer's built image on the real node: a tiny model and quotes, from a storage server to the same."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import API_VERSION, PLURAL, ExitCode
from tests.support.api import Object
from tests.support.fakegcs import FakeGcs
from tests.support.network import SERVICE_ADDRESS
from tests.support.nodecluster import TEAM, NodeCluster
from tests.support.quotes import quote_rows
from tests.support.tinymodels import write_model
from tests.support.wait import wait_for

BUCKET = "runs"
ADAPTER = "adapter/adapter_model.safetensors"


@contextmanager
def storage() -> Iterator[FakeGcs]:
    """A storage server that pods reach at an address inside the node's network, with the model and the quotes."""
    with FakeGcs(outside=SERVICE_ADDRESS) as running:
        bucket = running.client().bucket(running.new_bucket(BUCKET))
        with tempfile.TemporaryDirectory() as folder:
            for path in write_model(Path(folder), "3").iterdir():
                bucket.blob(f"models/tiny/{path.name}").upload_from_filename(str(path))
        lines = "".join(json.dumps(row) + "\n" for row in quote_rows()[:64])
        bucket.blob("quotes.jsonl").upload_from_string(lines)
        yield running


def apply(cluster: NodeCluster, name: str, steps: int, blocks: Object) -> None:
    """Applies a run of so many steps, whose only checkpoints are that of its end and those of a SIGTERM."""
    spec: Object = {
        "model": {"uri": f"gs://{BUCKET}/models/tiny"},
        "dataset": {
            "uri": f"gs://{BUCKET}/quotes.jsonl",
            "text": {"template": "Quote: {text}\nAuthor: {from}"},
            "maxLength": 64,
        },
        "training": {"maxSteps": steps, "globalBatchSize": 8, "microBatchSize": 1},
        "checkpoint": {"everySteps": steps},
        "output": {"uri": f"gs://{BUCKET}/{name}"},
        "accelerator": {"cpu": {}},
        "pod": {"resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "3Gi", "ephemeral-storage": "1Gi"}}},
    }
    cluster.apply(name, {key: {**spec.get(key, {}), **block} if isinstance(block, dict) else block
                         for key, block in {**spec, **blocks}.items()})  # fmt: skip


def suspend(cluster: NodeCluster, name: str, steps: int) -> int:
    """Suspends a run amidst its steps: the kubelet's SIGTERM leaves a checkpoint, exit code 30 and a message.

    Returns: the step that was reached.
    """

    def amidst() -> bool:
        pods = cluster.node.logs(TEAM, f"{name}-t1-*")
        return '"event": "step"' in pods

    wait_for(amidst, f"{name}: a step in its log", seconds=300, interval=0.1, detail=cluster.told)
    selector = f"gemmatune.dev/run={name},gemmatune.dev/role=train"
    state = cluster.end_of(TEAM, selector, lambda: _set_suspend(cluster, name, True))
    assert state["exitCode"] == ExitCode.INTERRUPTED, state
    message = from_text(state["message"], TerminationMessage)
    assert message is not None, state
    assert message.reason == "Interrupted", state
    assert message.step is not None, state
    assert 0 < message.step < steps, state
    status = cluster.wait(name, lambda s: s.get("phase") == "Suspended", "its suspension", 120)
    kept = f"gs://{BUCKET}/{name}/checkpoints/step-{message.step:08d}"
    assert status["checkpoint"] == {"step": message.step, "uri": kept}, "there was no other reason for one"
    return message.step


def resume(cluster: NodeCluster, name: str) -> None:
    """Lets a suspended run go on."""
    _set_suspend(cluster, name, False)


def check_end(cluster: NodeCluster, gcs: FakeGcs, name: str, steps: int, image: str) -> Object:
    """Waits for the end: the status, the objects in the bucket, and how the last pod ended. Returns the status."""
    status: Object = cluster.finished(name, 600)
    assert status["phase"] == "Succeeded", cluster.told()
    assert status["progress"]["stepText"] == f"{steps}/{steps}"
    assert status["checkpoint"] == {"step": steps, "uri": f"gs://{BUCKET}/{name}/checkpoints/step-{steps:08d}"}
    names = {found.removeprefix(f"{name}/") for found in gcs.names(BUCKET, f"{name}/")}
    assert {"run.json", "attempts/00001", ADAPTER, "report/report.html", "manifest.json"} <= names
    selector = f"gemmatune.dev/run={name},gemmatune.dev/role=train"
    pods = cluster.control_plane.api.get(f"/api/v1/namespaces/{TEAM}/pods", labelSelector=selector)["items"]
    (state,) = max(pods, key=lambda pod: pod["metadata"]["name"])["status"]["containerStatuses"]
    assert state["state"]["terminated"]["exitCode"] == ExitCode.DONE
    assert json.loads(state["state"]["terminated"]["message"])["manifest"] == f"gs://{BUCKET}/{name}/manifest.json"
    assert image in state["image"]
    return status


def _set_suspend(cluster: NodeCluster, name: str, wanted: bool) -> None:
    path = f"/apis/{API_VERSION}/namespaces/{TEAM}/{PLURAL}/{name}"
    cluster.control_plane.api.patch(path, {"spec": {"suspend": wanted}})
