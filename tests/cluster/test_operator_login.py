"""The operator outside of a cluster, with a login plugin whose tokens the real API server ceases to take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support import chart
from tests.support.api import Api, ApiError
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.play import PREPARED
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
USER = "outside"
EXEC = "client.authentication.k8s.io/v1beta1"


ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"


def account(crd: ControlPlane) -> None:
    """A ServiceAccount of another namespace than the run's; tokens of an earlier one of its name are void."""
    crd.api.create(ACCOUNTS, {"metadata": {"name": USER}})


def takes(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ApiError as error:
        if error.status != 401:
            raise
        return False
    return True


def test_the_operator_goes_on_with_a_new_login(crd: ControlPlane, namespace: str, tmp_path: Path) -> None:
    account(crd)
    binding = {
        "metadata": {"name": USER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": USER, "namespace": "default"}],
    }
    crd.api.create(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding)
    plugin, answer, calls = tmp_path / "plugin", tmp_path / "answer", tmp_path / "calls"
    plugin.write_text(f"#!/bin/sh\necho call >> '{calls}'\ncat '{answer}'\n")
    plugin.chmod(0o755)

    def gives(token: str) -> None:
        answer.write_text(json.dumps({"apiVersion": EXEC, "kind": "ExecCredential", "status": {"token": token}}))

    old = chart.token(crd, "default", USER)
    gives(old)
    config = yaml.safe_load(crd.kubeconfig.read_text())
    config["users"][0]["user"] = {"exec": {"apiVersion": EXEC, "command": str(plugin)}}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    operator = OperatorProcess(tmp_path / "kubeconfig", tmp_path / "operator.log", namespaces=[namespace])
    try:
        operator.ready()
        stage = Stage(crd.api, namespace)
        stage.create()
        stage.job("p1")
        crd.api.delete(f"{ACCOUNTS}/{USER}")
        account(crd)
        gives(chart.token(crd, "default", USER))
        former = crd.api_with_token(old)
        wait_for(lambda: not takes(former, stage.jobs), "the API server to refuse the old token", seconds=60)
        before = len(calls.read_text().splitlines())
        stage.ends("p1", 0, PREPARED)
        stage.job("t1")
        assert len(calls.read_text().splitlines()) > before
        assert 'code="401"' in operator.metrics()
        assert operator.probe("readyz") == 200
        assert "logged in again" in operator.server.log.read_text()
    finally:
        assert operator.stop() == 0
        crd.api.delete(f"{ACCOUNTS}/{USER}")
