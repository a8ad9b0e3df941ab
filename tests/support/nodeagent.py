"""A node of the test cluster: a Node object in the API whose pods run as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import requests

from tests.support.api import STRATEGIC, Api, ApiError, Object, Watch
from tests.support.controlplane import ControlPlane
from tests.support.nodelogs import LogServer
from tests.support.podworker import NodeContext, PodWorker, now
from tests.support.servers import LOOPBACK
from tests.support.wait import wait_for

RESOURCES = {"cpu": "16", "memory": "64Gi", "pods": "20", "ephemeral-storage": "200Gi"}
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
HEARTBEAT_SECONDS = 10  # as the kubelet; the node controller waits for 50


class NodeAgent:
    """Registers a node, keeps it Ready, and runs each pod that the scheduler binds to it; a context manager.

    It speaks to the API server as `system:node:NAME`, so the node authorizer rules what its pods' secrets are.
    A pod's process gets the container's command and environment, a token bound to the pod, and PATH, so that `python`
    is this Python; `environment` adds what an image would bring. Nothing else of this process's environment leaks in.
    `hardware` overrides what a container says of devices that this machine has not, such as the chips of a TPU.
    `addresses` is what the cluster's DNS would do: where a word of a command ends in `NAME:PORT` of another pod, its
    address here.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        folder: Path,
        name: str = "node-1",
        *,
        resources: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Object] = (),
        environment: Mapping[str, str] | None = None,
        hardware: Mapping[str, str] | None = None,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self._control_plane = control_plane
        self._api: Api = control_plane.api_as(f"system:node:{name}", ["system:nodes"])
        self._resources = {**RESOURCES, **(resources or {})}
        self._labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})}
        self._taints = list(taints)
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._workers: dict[str, PodWorker] = {}
        self._threads: list[threading.Thread] = []
        self._logs: LogServer | None = None
        path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
        self._context = NodeContext(
            api=self._api,
            folder=folder,
            address=LOOPBACK,
            port=control_plane.port,
            authority=control_plane.ca_path,
            environment={"PATH": path, "LANG": "C.UTF-8", "HOSTNAME": socket.gethostname(), **(environment or {})},
            hardware=dict(hardware or {}),
            addresses=dict(addresses or {}),
            stopping=self._stopping,
        )

    def start(self) -> NodeAgent:
        """Register the node and wait until the scheduler may use it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._logs = LogServer(self._control_plane.serving_cert(self.name), self._log_of)
        self._register()
        for target in (self._keep_alive, self._run_pods):
            thread = threading.Thread(target=target, name=f"{self.name} {target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        wait_for(self._schedulable, f"node {self.name} to lose the taint not-ready")
        return self

    def die(self) -> None:
        """The machine is gone: its processes end, its pods and its Node object stay as they are, nobody answers."""
        self._stopping.set()
        if self._watch:
            self._watch.close()
        for thread in [*self._threads, *self._workers.values()]:
            thread.join(10)
        if self._logs:
            self._logs.stop()
            self._logs = None

    def stop(self) -> None:
        """End every process, the connections and the Node object."""
        self.die()
        with contextlib.suppress(ApiError, requests.RequestException):
            # Node deletion is no right of a node.
            self._control_plane.api.delete(f"/api/v1/nodes/{self.name}")

    def __enter__(self) -> NodeAgent:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what tests use ---

    def log(self, namespace: str, pod: str) -> str:
        """What the pod's process has printed so far."""
        log = self._worker(namespace, pod).log
        return log.read_text(errors="replace") if log.exists() else ""

    def out_of_memory(self, namespace: str, pod: str) -> None:
        """End a pod as the kernel does at the memory limit: SIGKILL, reason OOMKilled."""
        self._worker(namespace, pod).out_of_memory()

    def pause(self, namespace: str, pod: str) -> None:
        """Stop a pod's process where it is: SIGSTOP."""
        self._worker(namespace, pod).pause()

    def kill(self, namespace: str, pod: str) -> None:
        """End all processes of a pod, and nobody says why: SIGKILL."""
        self._worker(namespace, pod).kill()

    def _log_of(self, namespace: str, pod: str) -> tuple[Path, Callable[[], bool]]:
        worker = self._worker(namespace, pod)
        return worker.log, worker.is_alive

    def _worker(self, namespace: str, pod: str) -> PodWorker:
        for worker in list(self._workers.values()):
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                return worker
        raise KeyError(f"no pod {namespace}/{pod} has been on node {self.name}")

    # --- the node ---

    def _register(self) -> None:
        metadata = {"name": self.name, "labels": self._labels}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": self._taints}}
        self._api.create("/api/v1/nodes", node)
        self._report()
        lease = {"metadata": {"name": self.name}, "spec": self._lease()}
        if self._api.find(f"{LEASES}/{self.name}") is None:
            self._api.create(LEASES, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease})

    def _report(self) -> None:
        ready = {"type": "Ready", "status": "True", "reason": "TestNodeReady", "lastHeartbeatTime": now()}
        status = {
            "capacity": self._resources,
            "allocatable": self._resources,
            "addresses": [{"type": "InternalIP", "address": LOOPBACK}, {"type": "Hostname", "address": self.name}],
            "conditions": [ready],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._logs.port if self._logs else 0}},
        }
        self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status}, STRATEGIC)

    def _lease(self) -> Object:
        renewed = now().replace("Z", ".000000Z")
        return {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": renewed}

    def _keep_alive(self) -> None:
        while not self._stopping.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(ApiError, requests.RequestException):
                self._api.patch(f"{LEASES}/{self.name}", {"spec": self._lease()})
                self._report()

    def _schedulable(self) -> bool:
        node = self._api.get(f"/api/v1/nodes/{self.name}")
        taints = [taint["key"] for taint in node["spec"].get("taints", [])]
        return "node.kubernetes.io/not-ready" not in taints

    # --- its pods ---

    def _run_pods(self) -> None:
        selector = f"spec.nodeName={self.name}"
        while not self._stopping.is_set():
            try:
                pods = self._api.get("/api/v1/pods", fieldSelector=selector)
                self._reconcile(pods["items"])
                version = pods["metadata"]["resourceVersion"]
                self._watch = self._api.watch("/api/v1/pods", fieldSelector=selector, resourceVersion=version)
                if self._stopping.is_set():
                    self._watch.close()
                for event in self._watch:
                    if event["type"] == "ERROR":
                        break
                    self._changed(event["object"], deleted=event["type"] == "DELETED")
            except (ApiError, requests.RequestException):
                # The API server is away, or does not know this node yet: look again.
                self._stopping.wait(0.2)

    def _reconcile(self, pods: Sequence[Object]) -> None:
        present = {pod["metadata"]["uid"] for pod in pods}
        for uid, worker in self._workers.items():
            if uid not in present:
                worker.gone()
        for pod in pods:
            self._changed(pod, deleted=False)

    def _changed(self, pod: Object, *, deleted: bool) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if deleted:
            if worker:
                worker.gone()
        elif worker:
            worker.update(pod)
        elif pod["status"].get("phase") not in ("Succeeded", "Failed"):
            worker = self._workers[uid] = PodWorker(self._context, pod)
            worker.update(pod)
            worker.start()
