"""Recipe R1 in miniature, installed by Helm: the torch trainer in a container of its built image, on a real kubelet,
writing to a storage server. In a soak only.

The image has 6 GB, CUDA's libraries among them; it trains a tiny model by QLoRA on the CPU here, with quotes. What the
GPU would add is in no test. tests/e2e/test_real_node.py does the same with the image of backend keras, in CI.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gemmatune_api.names import ENV_GCS_ENDPOINT
from tests.support import realrun
from tests.support.builds import built
from tests.support.fakegcs import FakeGcs
from tests.support.nodecluster import NodeCluster
from tests.support.realnode import why_not
from tests.support.realrun import ADAPTER, BUCKET
from tests.support.soak import only_in_soak
from tools import images, kube

pytestmark = [only_in_soak, pytest.mark.cluster, pytest.mark.timeout(3000)]
STEPS = 200
IMAGE = images.image_name("torch")
BLOCKS = {
    "dataset": {"evalFraction": 0.2},
    "qlora": {"rank": 4, "dropout": 0.1},
    "samples": {"prompts": ["Quote: Be"], "maxNewTokens": 4},
}


@pytest.fixture(scope="module")
def gcs() -> Iterator[FakeGcs]:
    """The storage server."""
    with realrun.storage() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(gcs: FakeGcs) -> Iterator[NodeCluster]:
    """The installation, with both images as they are built."""
    if reason := why_not():
        pytest.skip(reason)
    kube.ensure(("kubelet",))
    with contextlib.ExitStack() as stack:
        with built("operator") as operator, built("torch", copies=3) as trainer:
            running = stack.enter_context(NodeCluster())
            running.reach(gcs.port)
            running.node.load(trainer)
            endpoint = f"trainer.env.{ENV_GCS_ENDPOINT}={gcs.outside_endpoint}"
            running.install(operator, f"trainer.image={IMAGE}", endpoint)
        yield running


def test_a_whole_run(cluster: NodeCluster, gcs: FakeGcs) -> None:
    """From kubectl apply to an adapter in the bucket; status by the projected token, under Pod Security restricted."""
    realrun.apply(cluster, "whole", STEPS, BLOCKS)
    status = realrun.check_end(cluster, gcs, "whole", STEPS, IMAGE)
    assert status["samples"][0]["after"] is not None
    assert status["counters"]["attempts"] == 1


def test_a_suspended_run_goes_on_bit_by_bit(cluster: NodeCluster, gcs: FakeGcs) -> None:
    """The kubelet's SIGTERM: a checkpoint within the grace, and a second attempt that ends as an undisturbed run."""
    realrun.apply(cluster, "halted", STEPS, BLOCKS)
    reached = realrun.suspend(cluster, "halted", STEPS)
    realrun.resume(cluster, "halted")
    status = realrun.check_end(cluster, gcs, "halted", STEPS, IMAGE)
    assert [attempt.get("fromStep") for attempt in status["attempts"]] == [None, reached], status["attempts"]
    assert gcs.read(BUCKET, f"halted/{ADAPTER}") == gcs.read(BUCKET, f"whole/{ADAPTER}")
