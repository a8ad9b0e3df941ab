"""One pod on the test node, from the scheduler's binding to its end: what the kubelet would do, with a process."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import requests

from gemmatune_api import names
from gemmatune_cli.local.podenv import ConfigError, environment, expand, relocate
from gemmatune_cli.local.probes import Readiness
from gemmatune_cli.local.runner import Process, ProcessRunner, ProcessSpec, container_exit_code, termination_message
from tests.support.api import STRATEGIC, Api, ApiError, Object

T = TypeVar("T")


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class NodeContext:
    """What a pod needs of its node."""

    api: Api
    folder: Path
    address: str
    port: int
    authority: Path
    environment: Mapping[str, str]
    hardware: Mapping[str, str]
    addresses: Mapping[str, str]
    stopping: threading.Event


class NotKnownYet(Exception):
    """The node authorizer learns of a bound pod, and of what it refers to, a moment later; until then it refuses.

    So does who gives tokens: with 403 while it knows the pod as not bound, with 404 while it does not know it at all.
    """


class Stopped(Exception):
    """The node stopped, or the pod is gone, in the middle of a step."""


class PodWorker(threading.Thread):
    """Runs one pod with one container and restartPolicy Never."""

    def __init__(self, node: NodeContext, pod: Object) -> None:
        metadata = pod["metadata"]
        super().__init__(name=f"pod {metadata['namespace']}/{metadata['name']}", daemon=True)
        self.node = node
        self.pod = pod
        self.uid: str = metadata["uid"]
        self.path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self.folder = node.folder / "pods" / self.uid
        self.log = self.folder / "log"
        self._termination_log = self.folder / "termination-log"
        self._deadline: float | None = None  # of the grace period, once deletion has begun
        self._wake = threading.Event()
        self._gone = False
        self._out_of_memory = False
        self._process: Process | None = None
        self._bound_at = now()
        self._started_at: str | None = None

    # --- called by the node ---

    def update(self, pod: Object) -> None:
        """The pod changed: a deletion starts its grace period, and a second one may shorten it."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            grace = time.monotonic() + pod["metadata"].get("deletionGracePeriodSeconds", 0)
            self._deadline = grace if self._deadline is None else min(grace, self._deadline)
            self._wake.set()

    def gone(self) -> None:
        """The pod is no longer in the API: its process has no right to run."""
        self._gone = True
        self._wake.set()

    def out_of_memory(self) -> None:
        """End the process as the kernel does when a container exceeds its memory limit."""
        self._out_of_memory = True
        self._wake.set()

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): it neither goes on nor ends by SIGTERM."""
        if self._process is None:
            raise RuntimeError("the pod's process has not started")
        os.kill(self._process.id.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """End the process, and what it has started (SIGKILL), without any word to the node."""
        if self._process is None:
            raise RuntimeError("the pod's process has not started")
        self._process.kill()

    # --- the pod's story ---

    def run(self) -> None:
        try:
            refusal = self._refusal()
            if refusal:
                self._report(phase="Failed", reason="UnexpectedAdmissionError", message=refusal)
                return
            spec = self._when_configured()
            pod = self._report_end(self._run_process(spec))
            # Only the answer tells for sure whether a deletion came before the end; after it, none waits for this node.
            if pod["metadata"].get("deletionTimestamp"):
                self._remove()
        except Stopped:
            if not self.node.stopping.is_set() and not self._gone:
                self._remove()

    def _refusal(self) -> str | None:
        spec = self.pod["spec"]
        if spec["restartPolicy"] != "Never":
            return f"this test node runs pods with restartPolicy Never only, not {spec['restartPolicy']}"
        if len(spec["containers"]) != 1 or spec.get("initContainers"):
            return "this test node runs pods with exactly one container and no init containers"
        if not spec["containers"][0].get("command"):
            return "this test node has no images: the container must name its command"
        return None

    def _when_configured(self) -> ProcessSpec:
        """The process to start, once everything that the container refers to is there."""
        shown = None
        while True:
            try:
                return self._process_spec()
            except ConfigError as error:
                if str(error) != shown:
                    shown = str(error)
                    self._report(waiting={"reason": "CreateContainerConfigError", "message": shown})
            except NotKnownYet:
                pass  # as a kubelet, whose pod stays as it is meanwhile
            self._wake.wait(0.2)
            if self._ended_early():
                raise Stopped

    def _process_spec(self) -> ProcessSpec:
        container = self.pod["spec"]["containers"][0]
        mounts = self._mounts(container)
        base = {**self.node.environment, **self._own_variables(mounts)}
        wanted = environment(self.pod, container, self._lookup, base)
        # The node's own values are paths of this machine already.
        asked = {name: value for name, value in wanted.items() if base.get(name) != value}
        variables = {**base, **relocate(asked, mounts), **self.node.hardware}
        words = [*container["command"], *container.get("args", [])]
        command = [self._resolved(expand(word, variables)) for word in words]
        return ProcessSpec(
            command=command,
            environment=variables,
            directory=self.folder,
            log=self.log,
            termination_log=self._termination_log,
        )

    def _resolved(self, word: str) -> str:
        """A word of a command with the address of another pod in place of its name."""
        for name, address in self.node.addresses.items():
            if word.endswith(name):
                return word.removesuffix(name) + address
        return word

    def _own_variables(self, mounts: Mapping[str, Path]) -> dict[str, str]:
        """What stands for the paths that a container has and a process on this machine has not."""
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        variables = {
            "HOME": str(home),
            "TMPDIR": str(mounts.get("/tmp", home)),
            "KUBERNETES_SERVICE_HOST": self.node.address,
            "KUBERNETES_SERVICE_PORT": str(self.node.port),
            names.ENV_TERMINATION_LOG: str(self._termination_log),
        }
        if names.DEFAULT_CACHE in mounts:
            variables[names.ENV_CACHE] = str(mounts[names.DEFAULT_CACHE])
        claims = self.folder / "claims"
        for path, folder in mounts.items():
            if path.startswith(f"{names.DEFAULT_CLAIMS}/"):
                claims.mkdir(exist_ok=True)
                (claims / Path(path).name).unlink(missing_ok=True)
                (claims / Path(path).name).symlink_to(folder)
                variables[names.ENV_CLAIMS] = str(claims)
        if names.DEFAULT_SERVICE_ACCOUNT_DIR in mounts:
            folder = mounts[names.DEFAULT_SERVICE_ACCOUNT_DIR]
            self._write_service_account(folder)
            variables[names.ENV_SERVICE_ACCOUNT_DIR] = str(folder)
        return variables

    def _mounts(self, container: Object) -> dict[str, Path]:
        """A folder for each emptyDir, for the service account's projected volume and for a claim, by mount path."""
        kinds = {volume["name"]: volume for volume in self.pod["spec"].get("volumes", [])}
        mounts: dict[str, Path] = {}
        for mount in container.get("volumeMounts", []):
            volume = kinds[mount["name"]]
            if "persistentVolumeClaim" in volume:
                mounts[mount["mountPath"]] = self._claimed(volume["persistentVolumeClaim"]["claimName"])
                continue
            if "emptyDir" not in volume and mount["mountPath"] != names.DEFAULT_SERVICE_ACCOUNT_DIR:
                raise ConfigError(f"volume {volume['name']}: this test node has no such volumes")
            folder = self.folder / "volumes" / mount["name"]
            folder.mkdir(parents=True, exist_ok=True)
            mounts[mount["mountPath"]] = folder
        return mounts

    def _claimed(self, claim: str) -> Path:
        """The folder of this machine that is behind a bound claim: its volume's hostPath."""
        namespace = self.pod["metadata"]["namespace"]
        found = self._lookup("persistentvolumeclaims", claim) or {"spec": {}}
        path = f"/api/v1/persistentvolumes/{found['spec'].get('volumeName')}"
        volume = self._persist(lambda: self._allowed(lambda: self.node.api.find(path)))
        if volume is None:
            raise ConfigError(f"claim {namespace}/{claim} is bound to no volume")
        return Path(volume["spec"]["hostPath"]["path"])

    def _write_service_account(self, folder: Path) -> None:
        """Token, ca.crt and namespace; the token is bound to this pod and dies with it."""
        metadata = self.pod["metadata"]
        account = self.pod["spec"]["serviceAccountName"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        pod_reference = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": self.uid}
        request = {"spec": {"expirationSeconds": 3607, "boundObjectRef": pod_reference}}
        answer = self._persist(lambda: self._allowed(lambda: self.node.api.create(path, request)))
        (folder / "token").write_text(answer["status"]["token"])
        (folder / "namespace").write_text(metadata["namespace"])
        shutil.copyfile(self.node.authority, folder / "ca.crt")

    def _lookup(self, kind: str, name: str) -> Object | None:
        path = f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/{kind}/{name}"
        return self._persist(lambda: self._allowed(lambda: self.node.api.find(path)))

    @staticmethod
    def _allowed(call: Callable[[], T]) -> T:
        try:
            return call()
        except ApiError as error:
            if error.status in (403, 404):
                raise NotKnownYet from error
            raise

    def _run_process(self, spec: ProcessSpec) -> int:
        """Start the process, wait for its end or bring it about; the exit code as a container shows it."""
        container = self.pod["spec"]["containers"][0]
        readiness = Readiness(container, self._mounts(container))
        handle = self._process = ProcessRunner().start(spec)
        asked = False
        try:
            self._started_at = now()
            ready = readiness.look(time.monotonic())
            self._report(phase="Running", ready=ready)
            while (code := handle.poll()) is None:
                if readiness.look(time.monotonic()) != ready:
                    ready = not ready
                    self._report(phase="Running", ready=ready)
                if self.node.stopping.is_set() or self._gone:
                    raise Stopped
                if self._out_of_memory:
                    handle.kill()
                if self._deadline is not None:
                    if not asked:
                        handle.terminate()
                        asked = True
                    if time.monotonic() >= self._deadline:
                        handle.kill()
                self._wake.wait(0.05)
                self._wake.clear()
        finally:
            if handle.poll() is None:
                handle.kill()
        return container_exit_code(code)

    def _report_end(self, code: int) -> Object:
        reason = "OOMKilled" if self._out_of_memory else "Completed" if code == 0 else "Error"
        end = {"exitCode": code, "reason": reason, "startedAt": self._started_at, "finishedAt": now()}
        policy = self.pod["spec"]["containers"][0].get("terminationMessagePolicy")
        fallback = self.log if code != 0 and policy == "FallbackToLogsOnError" else None
        message = termination_message(self._termination_log, fallback)
        if message:
            end["message"] = message
        return self._report(phase="Succeeded" if code == 0 else "Failed", terminated=end)

    # --- the API server ---

    def _report(
        self,
        *,
        phase: str = "Pending",
        waiting: Object | None = None,
        terminated: Object | None = None,
        reason: str | None = None,
        message: str | None = None,
        ready: bool = False,
    ) -> Object:
        """Write the pod's status; the pod as it is then."""
        container = self.pod["spec"]["containers"][0]
        running = phase == "Running"
        answer = "True" if ready else "False"
        state: Object = (
            {"terminated": terminated}
            if terminated
            else {"running": {"startedAt": self._started_at}}
            if running
            else {"waiting": waiting or {"reason": "ContainerCreating"}}
        )
        status: Object = {
            "phase": phase,
            "startTime": self._bound_at,
            "hostIP": self.node.address,
            "podIP": self.node.address,
            "podIPs": [{"ip": self.node.address}],
            "conditions": [
                {"type": "Initialized", "status": "True"},
                {"type": "ContainersReady", "status": answer},
                {"type": "Ready", "status": answer},
            ],
        }
        if reason:
            status |= {"reason": reason, "message": message}
        else:
            about = {"name": container["name"], "image": container["image"], "imageID": container["image"]}
            status["containerStatuses"] = [
                {**about, "ready": ready, "started": running, "restartCount": 0, "state": state}
            ]
        body = {"metadata": {"uid": self.uid}, "status": status}
        return self._persist(lambda: self.node.api.patch(f"{self.path}/status", body, STRATEGIC))

    def _remove(self) -> None:
        """Take the pod out of the API, as the kubelet does when the last process of a deleted pod has ended."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        self._persist(lambda: self.node.api.delete(self.path, body))

    def _ended_early(self) -> bool:
        return self._gone or self._deadline is not None or self.node.stopping.is_set()

    def _persist(self, call: Callable[[], T]) -> T:
        """Make the call, again while the API server is away. Errors: Stopped when node or pod are gone by then."""
        while True:
            try:
                return call()
            except requests.RequestException:
                pass
            except ApiError as error:
                if error.status in (404, 409):
                    self._gone = True
                    raise Stopped from error
                if error.status < 500 and error.status != 429:
                    raise
            if self.node.stopping.wait(0.2) or self._gone:
                raise Stopped
