"""Operator, node and the real trainer's process: a real failure with its words, and a real stop by suspension."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmatune_api.names import EXIT_REASONS
from tests.support.controlplane import ControlPlane
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
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
