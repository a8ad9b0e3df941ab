"""An operator for some namespaces only: by the Roles that the chart makes there it gets runs to their end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import chart
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.stage import Stage
from tests.support.story import INTERRUPTED, SIMPLE, Story
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
RELEASE = "teams"
USER = f"system:serviceaccount:{chart.NAMESPACE}:{RELEASE}-gemmatune-operator"


def test_two_namespaces_of_three(crd: ControlPlane, make_namespace: Callable[..., str], tmp_path: Path) -> None:
    watched, other = [make_namespace(), make_namespace()], make_namespace()
    documents = chart.render({"namespaces": watched, "policy.install": False}, release=RELEASE)
    chart.apply(crd, [document for document in documents if document["kind"] in chart.ACCESS_KINDS])
    for namespace in watched:
        wait_for(lambda here=namespace: chart.allowed(crd, USER, "list", "gemmafinetunes", here), "the rights")  # type: ignore[misc]
    assert not chart.allowed(crd, USER, "list", "gemmafinetunes", other)
    assert not chart.allowed(crd, USER, "list", "gemmafinetunes")
    # With the group of a ServiceAccount: the audit log is looked through for refusals after the test.
    kubeconfig = crd.kubeconfig_for(USER, [chart.AUDITED_GROUP])
    position = crd.audit_position
    operator = OperatorProcess(kubeconfig, tmp_path / "operator.log", namespaces=watched).ready()
    try:
        Stage(crd.api, other).create()
        for namespace, plot in zip(watched, (INTERRUPTED, SIMPLE), strict=True):
            Story(Stage(crd.api, namespace), plot).create().to_the_end().check()
        assert Stage(crd.api, other).status == {}, "nobody watches there"
        assert operator.stop() == 0
        assert operator.stacks() == []
    finally:
        operator.kill()
    asked = {request.namespace for request in crd.audited(position) if request.user == USER}
    assert asked == set(watched)
