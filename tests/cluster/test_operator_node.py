"""Operator, node and the real trainer's process: a failure in its words, a stop by suspension, data on a volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmatune_api.names import EXIT_REASONS
from tests.support.controlplane import ControlPlane
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.standin import write_small_model
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(240)
def test_the_trainers_own_words(crd: ControlPlane, namespace: str, node: NodeAgent, tmp_path: Path) -> None:
    """Nothing is played: the preparation's process ends by itself, and the resource says what it said."""
    stage = Stage(crd.api, namespace)
    operator = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    try:
        stage.create(
            model={"uri": f"file://{tmp_path}/no-model"},
            dataset={"uri": f"file://{tmp_path}/rows.jsonl", "text": {"template": "{text}"}},
            output={"uri": f"file://{tmp_path}/out"},
            accelerator={"cpu": {}},
        )
        status = stage.wait_phase("Failed", seconds=180)
        assert str(tmp_path) in status["message"]
        assert status["remedy"]
        pod = stage.pod("p1")["status"]["containerStatuses"][0]["state"]["terminated"]
        assert EXIT_REASONS[pod["exitCode"]] == status["reason"]
        assert status["message"] in pod["message"]
        stage.annotate("again")
        stage.pod("p2")
        stage.change(suspend=True)
        stage.wait_phase("Suspended", seconds=60)
        wait_for(lambda: stage.api.get(stage.pods, labelSelector="gemmatune.dev/attempt=2")["items"] == [], "no pod")
    finally:
        assert operator.stop() == 0


@pytest.mark.timeout(240)
def test_model_and_data_on_a_volume(crd: ControlPlane, namespace: str, node: NodeAgent, tmp_path: Path) -> None:
    """The scheduler waits for the claim, which the resource says; then the preparation reads what is mounted."""
    stage = Stage(crd.api, namespace)
    operator = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace])
    try:
        write_small_model(tmp_path / "volume" / "gemma", "3")
        lines = "".join(f'{{"text": "Be yourself {number}."}}\n' for number in range(24))
        (tmp_path / "volume" / "rows.jsonl").write_text(lines)
        stage.create(
            model={"uri": "pvc://team-data/gemma"},
            dataset={"uri": "pvc://team-data/*.jsonl", "text": {"template": "{text}"}},
            output={"uri": f"file://{tmp_path}/out"},
            accelerator={"cpu": {}},
        )
        missing = 'persistentvolumeclaim "team-data" not found'
        status = stage.wait(lambda status: missing in str(status.get("message")), "the missing claim", seconds=120)
        assert status["phase"] == "Preparing"
        volume = {"name": f"{namespace}-team-data", "path": str(tmp_path / "volume")}
        crd.kubectl("create", "-f", "-", input=bound_claim(namespace, volume))
        status = stage.wait(lambda status: status.get("data"), "the prepared rows", seconds=180)
        assert status["data"]["rows"] == 24
        assert (tmp_path / "out" / "prepared" / status["data"]["hash"] / "rows.arrow").is_file()
    finally:
        assert operator.stop() == 0


def bound_claim(namespace: str, volume: dict[str, str]) -> dict[str, object]:
    """A claim and the volume it is bound to: a folder of the test node."""
    size = {"storage": "1Gi"}
    modes = ["ReadWriteOnce"]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "team-data", "namespace": namespace},
        "spec": {
            "accessModes": modes,
            "storageClassName": "",
            "volumeName": volume["name"],
            "resources": {"requests": size},
        },
    }
    reference = {"namespace": namespace, "name": "team-data"}
    persistent = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume["name"]},
        "spec": {
            "accessModes": modes,
            "capacity": size,
            "storageClassName": "",
            "hostPath": {"path": volume["path"]},
            "claimRef": reference,
        },
    }
    return {"apiVersion": "v1", "kind": "List", "items": [persistent, claim]}
