"""A TPU slice of the test cluster: nodes with the labels, the taint and the chips of its hosts, and virtual devices in
place of the chips. What is the same for every backend that trains there, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmatune_api import gke, names
from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_operator.manifests import service
from gemmatune_trainer.launcher import free_port
from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.nodeagent import NodeAgent
from tests.support.servers import LOOPBACK
from tests.support.stage import Stage
from tests.trainer.conftest import write_quotes

TYPE = "tpu-v5-lite-podslice"
ATTEMPTS = 3
"""As many attempts of a run find each other."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of v5e hosts with four chips each."""

    topology: str
    hosts: int
    chips_per_node: int | None = None

    @property
    def accelerator(self) -> Object:
        """`spec.accelerator` that asks for it."""
        chosen = {"chipsPerNode": self.chips_per_node} if self.chips_per_node else {}
        return {"tpu": {"type": TYPE, "topology": self.topology, **chosen}}

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its nodes."""
        found = {gke.TPU_TYPE: TYPE, gke.TPU_TOPOLOGY: self.topology, gke.ACCELERATOR_COUNT: "4"}
        return found | ({gke.NODE_POOL: "pool-tpu"} if self.hosts > 1 else {})


ONE_HOST = Slice("2x2", 1)
TWO_HOSTS = Slice("2x4", 2, 4)
MACHINE = {"cpu": "112", "memory": "192Gi", gke.TPU: "4"}
"""A node of machine type ct5lp-hightpu-4t."""


@contextmanager
def nodes(
    control_plane: ControlPlane, fake_gcs: FakeGcs, folder: Path, found: Slice, chips: Mapping[str, str]
) -> Iterator[list[NodeAgent]]:
    """An ordinary node, and those of the slice; all find the storage double, and each other under a run `quotes`.

    `chips`: the environment that gives a trainer virtual devices in place of a host's four chips.
    """
    storage = {ENV_GCS_ENDPOINT: fake_gcs.endpoint}
    taint = {"key": gke.TPU, "value": "present", "effect": "NoSchedule"}
    meeting = {
        f"{service.host(f'quotes-t{number}', 0)}:{service.COORDINATOR_PORT}": f"{LOOPBACK}:{free_port()}"
        for number in range(1, ATTEMPTS + 1)
    }
    with ExitStack() as stack:
        agents = [NodeAgent(control_plane, folder / "cpu", "cpu-1", environment=storage, hardware=chips)]
        agents += [
            NodeAgent(
                control_plane,
                folder / f"tpu-{number}",
                f"tpu-{number}",
                resources=MACHINE,
                labels=found.labels,
                taints=[taint],
                environment=storage,
                hardware=chips,
                addresses=meeting,
            )
            for number in range(1, found.hosts + 1)
        ]
        yield [stack.enter_context(agent) for agent in agents]


def applied(
    control_plane: ControlPlane, namespace: str, fake_gcs: FakeGcs, bucket: str, folder: Path, spec: Mapping[str, Any]
) -> Stage:
    """Puts rows into the bucket, and applies a run `quotes` of `spec` on them by kubectl."""
    rows = write_quotes(folder / "quotes.jsonl").read_bytes()
    fake_gcs.client().bucket(bucket).blob("data/quotes.jsonl").upload_from_string(rows)
    whole = {
        "dataset": {
            "uri": f"gs://{bucket}/data/quotes.jsonl",
            "text": {"template": "Quote: {text}\nAuthor: {from}"},
            "maxLength": 128,
        },
        "output": {"uri": f"gs://{bucket}/runs/quotes"},
        **spec,
    }
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "quotes"}, "spec": whole}
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(document))
    return Stage(control_plane.api, namespace)


def downloaded(fake_gcs: FakeGcs, bucket: str, prefix: str, folder: Path) -> Path:
    """The objects below a prefix, as files."""
    folder.mkdir()
    for name in fake_gcs.names(bucket, prefix):
        (folder / name.removeprefix(prefix)).write_bytes(fake_gcs.read(bucket, name))
    return folder


def events(log: str, name: str) -> list[dict[str, Any]]:
    """The lines of one event in a trainer's log."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]
