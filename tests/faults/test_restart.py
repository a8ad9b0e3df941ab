"""A restarted operator remembers why a run waits, also where only an Event told it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_restart_forgets_no_reason(crd: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """The quota's Event is old when the new process starts; nothing is written, and so nothing is news again."""
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    crd.api.create(quotas, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    wait_for(lambda: crd.api.get(f"{quotas}/none").get("status", {}).get("hard"), "the quota to hold")
    stage = Stage(crd.api, namespace)
    first = OperatorProcess(crd.operator_kubeconfig, tmp_path / "first.log", namespaces=[namespace]).ready()
    stage.create()
    stage.wait(lambda it: it.get("reason") == "QuotaExceeded", "QuotaExceeded", 60)
    first.kill()
    before = stage.resource
    second = OperatorProcess(crd.operator_kubeconfig, tmp_path / "second.log", namespaces=[namespace]).ready()
    try:
        wait_for(lambda: _looked(second), "the new process to look", detail=second.metrics)
        after = stage.resource
        assert after["status"] == before["status"]
        version = after["metadata"]["resourceVersion"]
        assert version == before["metadata"]["resourceVersion"], "a status write although nothing has changed"
    finally:
        assert second.stop() == 0


def _looked(operator: OperatorProcess) -> bool:
    counts = [line for line in operator.metrics().splitlines() if line.startswith("gemmatune_reconcile_seconds_count")]
    return any(float(line.split()[-1]) >= 1 for line in counts)
