"""A whole installation on a real node: control plane, kubelet, and the operator as its chart installs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from gemmatune_api import names
from tests.support import chart
from tests.support.api import STRATEGIC, Object
from tests.support.controlplane import ControlPlane
from tests.support.network import SERVICE_ADDRESS
from tests.support.realnode import RealNode
from tests.support.wait import wait_for

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TEAM = "team"
"""The namespace of the runs."""
HOLD = "gemmatune.dev/tests"
"""Finalizer of a pod whose end is to be read: the kubelet deletes a pod right after it has told how it ended."""


class NodeCluster:
    """Operator and runs in containers, all under the Pod Security level `restricted`; a context manager."""

    def __init__(self) -> None:
        self.control_plane = ControlPlane()
        self.node = RealNode(self.control_plane)

    def install(self, operator: Path, *values: str) -> None:
        """Brings the operator's image onto the node, and installs the chart; waits until the operator is available."""
        self.node.load(operator)
        for name in (chart.NAMESPACE, TEAM):
            self.control_plane.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": RESTRICTED}})
        image = ("image.repository=gemmatune-operator", "image.tag=latest", "image.pullPolicy=Never")
        flags = [f"--set={value}" for value in (*image, "trainer.imagePullPolicy=Never", *values)]
        self.helm("install", chart.RELEASE, str(chart.CHART), *flags, "--wait", "--timeout=5m")

    def reach(self, port: int) -> None:
        """Lets pods reach a port of this machine's loopback, at SERVICE_ADDRESS."""
        assert self.node.network is not None
        self.node.network.forward(SERVICE_ADDRESS, port, port)

    def helm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Helm in the operator's namespace."""
        where = ("--kubeconfig", str(self.control_plane.kubeconfig), "--namespace", chart.NAMESPACE)
        try:
            return chart.helm(*arguments, *where, timeout=400)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def apply(self, name: str, spec: Object) -> None:
        """Applies a run by kubectl."""
        document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}
        self.control_plane.kubectl("apply", "-n", TEAM, "-f", "-", input=document)

    def status(self, name: str) -> dict[str, Any]:
        """The run's status."""
        path = f"/apis/{names.API_VERSION}/namespaces/{TEAM}/{names.PLURAL}/{name}"
        found: dict[str, Any] = self.control_plane.api.get(path).get("status", {})
        return found

    def wait(self, name: str, condition: Callable[[dict[str, Any]], object], what: str, seconds: float = 240) -> Any:
        """Waits for something of the run's status; the status then."""
        return wait_for(
            lambda: (status := self.status(name)) and condition(status) and status,
            f"{name}: {what}",
            seconds=seconds,
            interval=0.5,
            detail=lambda: f"{json.dumps(self.status(name), indent=1)}\n{self.told()}",
        )

    def finished(self, name: str, seconds: float = 240) -> dict[str, Any]:
        """The status of a run that has ended, either way."""
        found: dict[str, Any] = self.wait(name, lambda s: s.get("phase") in ("Succeeded", "Failed"), "its end", seconds)
        return found

    def end_of(self, namespace: str, selector: str, end: Callable[[], object], seconds: float = 120) -> Object:
        """How the container of the one pod of a selector has ended, once `end` was called: its state `terminated`."""
        api, pods = self.control_plane.api, f"/api/v1/namespaces/{namespace}/pods"
        (pod,) = api.get(pods, labelSelector=selector)["items"]
        path = f"{pods}/{pod['metadata']['name']}"

        def terminated() -> Object | None:
            (container,) = api.get(path)["status"]["containerStatuses"]
            found: Object | None = container["state"].get("terminated")
            return found

        api.patch(path, {"metadata": {"finalizers": [HOLD]}}, STRATEGIC)
        try:
            end()
            found = wait_for(terminated, f"the end of {path}", seconds=seconds, detail=self.told)
        finally:
            api.patch(path, {"metadata": {"$deleteFromPrimitiveList/finalizers": [HOLD]}}, STRATEGIC)
        assert found is not None
        return found

    def told(self) -> str:
        """What pods, Events and logs say, for a test that fails."""
        pods = self.control_plane.kubectl("get", "pods,events", "-A", check=False).stdout
        return f"{pods[-6000:]}\n{self.node.logs(chart.NAMESPACE, '*')[-3000:]}\n{self.node.logs(TEAM, '*')[-3000:]}"

    def __enter__(self) -> NodeCluster:
        self.control_plane.start()
        try:
            self.node.start()
        except BaseException:
            self.control_plane.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.node.stop()
        self.control_plane.stop()
