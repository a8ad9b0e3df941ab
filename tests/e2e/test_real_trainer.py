"""Recipe R1 in miniature, installed by Helm: the torch trainer in a container of its built image, on a real kubelet,
writing to a storage server. In a soak only.

The image has 6 GB, CUDA's libraries among them; it trains a tiny model by QLoRA on the CPU here, with quotes. What the
GPU would add is in no test. tests/e2e/test_real_node.py runs the same installation with a stand-in, in CI.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmatune_api.names import ENV_GCS_ENDPOINT
from tests.support.api import Object
from tests.support.fakegcs import FakeGcs
from tests.support.network import SERVICE_ADDRESS
from tests.support.nodecluster import TEAM, NodeCluster
from tests.support.quotes import quote_rows
from tests.support.realnode import why_not
from tests.support.soak import only_in_soak
from tests.support.tinymodels import write_model
from tools import images, kube

pytestmark = [only_in_soak, pytest.mark.cluster, pytest.mark.timeout(3000)]
DISK = 20 * 10**9
"""Free disk that it takes once the image is built: containerd keeps the image packed and unpacked."""
STEPS, EVERY = 200, 20
BUCKET = "runs"
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def gcs() -> Iterator[FakeGcs]:
    """A storage server that pods reach at an address inside the node's network."""
    with FakeGcs(outside=SERVICE_ADDRESS) as running:
        bucket = running.client().bucket(running.new_bucket(BUCKET))
        with tempfile.TemporaryDirectory() as folder:
            for path in write_model(Path(folder), "3").iterdir():
                bucket.blob(f"models/tiny/{path.name}").upload_from_filename(str(path))
        lines = "".join(json.dumps(row) + "\n" for row in quote_rows()[:64])
        bucket.blob("quotes.jsonl").upload_from_string(lines)
        yield running


@pytest.fixture(scope="module")
def cluster(gcs: FakeGcs) -> Iterator[NodeCluster]:
    """The installation, with both images as they are built."""
    if reason := why_not() or images.why_not_buildkit():
        pytest.skip(reason)
    kube.ensure(("kubelet",))
    with images.buildkit() as socket:
        operator, trainer = (images.build(socket, name).archive for name in ("operator", "torch"))
        images.make_room(socket, DISK)
    assert operator is not None
    assert trainer is not None
    with NodeCluster() as running:
        assert running.node.network is not None
        running.node.network.forward(SERVICE_ADDRESS, gcs.port, gcs.port)
        running.node.load(trainer)
        running.install(
            operator,
            f"trainer.image={images.image_name('torch')}",
            f"trainer.env.{ENV_GCS_ENDPOINT}={gcs.outside_endpoint}",
        )
        yield running


def apply(cluster: NodeCluster, name: str) -> None:
    """Applies a run of the tiny model, as R1 asks for it; the same in all but its name."""
    resources: Object = {"requests": {"cpu": "100m"}, "limits": {"memory": "3Gi"}}
    cluster.apply(
        name,
        {
            "model": {"uri": f"gs://{BUCKET}/models/tiny"},
            "dataset": {
                "uri": f"gs://{BUCKET}/quotes.jsonl",
                "text": {"template": "Quote: {text}\nAuthor: {from}"},
                "maxLength": 64,
                "evalFraction": 0.2,
            },
            "qlora": {"rank": 4, "dropout": 0.1},
            "training": {"maxSteps": STEPS, "globalBatchSize": 8, "microBatchSize": 1},
            "checkpoint": {"everySteps": EVERY},
            "output": {"uri": f"gs://{BUCKET}/{name}"},
            "samples": {"prompts": ["Quote: Be"], "maxNewTokens": 4},
            "accelerator": {"cpu": {}},
            "pod": {"resources": resources},
        },
    )


def test_a_whole_run(cluster: NodeCluster, gcs: FakeGcs) -> None:
    """From kubectl apply to an adapter in the bucket; status by the projected token, under Pod Security restricted."""
    apply(cluster, "whole")
    status = cluster.finished("whole", 600)
    assert status["phase"] == "Succeeded", cluster.told()
    assert status["progress"]["stepText"] == f"{STEPS}/{STEPS}"
    assert status["checkpoint"] == {"step": STEPS, "uri": f"gs://{BUCKET}/whole/checkpoints/step-{STEPS:08d}"}
    assert status["samples"][0]["after"] is not None
    assert status["counters"]["attempts"] == 1
    names = {name.removeprefix("whole/") for name in gcs.names(BUCKET, "whole/")}
    assert {"run.json", "attempts/00001", ADAPTER, "report/report.html", "manifest.json"} <= names
    selector = "gemmatune.dev/run=whole,gemmatune.dev/role=train"
    pods = cluster.control_plane.api.get(f"/api/v1/namespaces/{TEAM}/pods", labelSelector=selector)["items"]
    (state,) = pods[0]["status"]["containerStatuses"]
    assert state["state"]["terminated"]["exitCode"] == 0
    assert json.loads(state["state"]["terminated"]["message"])["manifest"] == f"gs://{BUCKET}/whole/manifest.json"
    assert "gemmatune-trainer-torch" in state["image"]


def test_a_suspended_run_goes_on_bit_by_bit(cluster: NodeCluster, gcs: FakeGcs) -> None:
    """The kubelet's SIGTERM: a checkpoint within the grace, and a second attempt that ends as an undisturbed run."""
    apply(cluster, "halted")
    cluster.wait("halted", lambda s: s.get("checkpoint"), "a first checkpoint", 300)
    path = f"/apis/gemmatune.dev/v1alpha1/namespaces/{TEAM}/gemmafinetunes/halted"
    cluster.control_plane.api.patch(path, {"spec": {"suspend": True}})
    status = cluster.wait("halted", lambda s: s.get("phase") == "Suspended", "its suspension", 120)
    reached = status["checkpoint"]["step"]
    assert EVERY <= reached < STEPS
    cluster.control_plane.api.patch(path, {"spec": {"suspend": False}})
    status = cluster.finished("halted", 600)
    assert status["phase"] == "Succeeded", cluster.told()
    assert [attempt.get("fromStep") for attempt in status["attempts"]] == [None, reached], status["attempts"]
    assert gcs.read(BUCKET, f"halted/{ADAPTER}") == gcs.read(BUCKET, f"whole/{ADAPTER}")
