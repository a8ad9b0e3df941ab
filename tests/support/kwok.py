"""KWOK on the test control plane: nodes without machines, whose pods end as their annotations say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
import yaml

from gemmatune_api import names
from gemmatune_api.names import Role
from tests.support.api import ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.play import PREPARED
from tests.support.servers import LOOPBACK, Server
from tests.support.wait import wait_for
from tools import kube

PREFIX = "fault.test/"
OURS = "kwok.x-k8s.io/node"
RESOURCES = {"cpu": "10000", "memory": "100Ti", "pods": "10000", "ephemeral-storage": "1000Ti"}


@dataclass(frozen=True)
class End:
    """How the first pod of a role behaves; every later one runs until it is deleted.

    `kind` is `exit` (its container ends), `reject` (it fails before any container), `vanish` (it fails while its
    container still counts as running: nobody saw the end), or `wait` (it never starts).
    """

    kind: str
    role: Role = Role.TRAIN
    code: int = 0
    reason: str = "Error"
    message: str = ""
    pod_reason: str = ""
    pod_message: str = ""
    disruption: str = ""
    index: str = ""
    """Only the pod of this completion index; empty: every one."""

    def annotations(self) -> dict[str, str]:
        """The annotations for spec.pod.annotations."""
        fields = {
            self.role.value: self.kind,
            "code": str(self.code),
            "reason": self.reason,
            "message": self.message,
            "pod-reason": self.pod_reason,
            "pod-message": self.pod_message,
            "disruption": self.disruption,
            "index": self.index,
        }
        return {f"{PREFIX}{name}": value for name, value in fields.items()}


STAYS = {f"{PREFIX}stays": "yes"}
"""Annotation of a pod that does not go when it is deleted: nothing answers on its node."""


class Kwok:
    """The KWOK process and its nodes; a context manager."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        self._control_plane = control_plane
        folder.mkdir(parents=True, exist_ok=True)
        self._stages = folder / "stages.yaml"
        self.log = folder / "kwok.log"
        self._nodes: list[str] = []

    def __enter__(self) -> Kwok:
        program = kube.find("kwok")
        if program is None:
            raise FileNotFoundError("kwok is not built: run `make kube`")
        self._stages.write_text(yaml.safe_dump_all(stages()))
        flags = [
            f"--kubeconfig={self._control_plane.kubeconfig}",
            f"--manage-nodes-with-annotation-selector={OURS}=fake",
            "--node-lease-duration-seconds=40",
            f"--node-ip={LOOPBACK}",
            "--cidr=10.244.0.0/24",
            f"--config={self._stages}",
        ]
        self._server = Server("kwok", [str(program), *flags], self.log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        for path in self._nodes:
            with contextlib.suppress(ApiError, requests.RequestException):
                self._control_plane.api.delete(path)

    def node(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        resources: Mapping[str, str] | None = None,
        taints: Sequence[Object] = (),
    ) -> None:
        """Makes a node and waits until the scheduler may use it."""
        api, path = self._control_plane.api, f"/api/v1/nodes/{name}"
        capacity = {**RESOURCES, **(resources or {})}
        metadata = {
            "name": name,
            "annotations": {OURS: "fake"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **(labels or {})},
        }
        api.create(
            "/api/v1/nodes",
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": metadata,
                "spec": {"taints": list(taints)},
                "status": {"capacity": capacity, "allocatable": capacity},
            },
        )
        self._nodes.append(path)

        def usable() -> bool:
            self._server.check()
            node = api.get(path)
            ready = {item["type"]: item["status"] for item in node["status"].get("conditions", [])}
            away = [taint for taint in node["spec"].get("taints", []) if taint["key"] == "node.kubernetes.io/not-ready"]
            return ready.get("Ready") == "True" and not away

        wait_for(usable, f"node {name} of KWOK", detail=self._server.tail)


# --- stages ---


def stages() -> list[Object]:
    """What happens to nodes and pods; the order does not matter, since no two selectors hold at once."""
    found = [_node_ready()]
    for role in (Role.PREPARE, Role.TRAIN):
        ours = _label(names.LABEL_ROLE, "In", role.value)
        first = [ours, _label(names.LABEL_ATTEMPT, "In", "1")]
        later = [ours, _label(names.LABEL_ATTEMPT, "NotIn", "1")]
        pending = [_alive(), _phase("Pending")]
        running = [_alive(), _phase("Running")]
        found += [
            _stage(f"{role}-runs", [*first, *pending, _end(role, "NotIn", "reject", "wait")], RUNNING),
            _stage(f"{role}-later-runs", [*later, *pending], RUNNING),
            _stage(f"{role}-rejected", [*first, *pending, _end(role, "In", "reject")], REJECTED),
            _stage(
                f"{role}-waits",
                [*first, *pending, _end(role, "In", "wait"), _key(".status.containerStatuses", "DoesNotExist")],
                WAITING,
            ),
            _stage(f"{role}-ends", [*first, *running, _end(role, "In", "exit"), _no_index()], ENDED),
            _stage(f"{role}-vanishes", [*first, *running, _end(role, "In", "vanish")], REJECTED),
            _stage(f"{role}-one-ends", [*first, *running, _end(role, "In", "exit"), _own_index()], ENDED),
        ]
    prepare = [_label(names.LABEL_ROLE, "In", "prepare"), _alive(), _phase("Running")]
    first = [*prepare, _label(names.LABEL_ATTEMPT, "In", "1"), _end(Role.PREPARE, "NotIn", "exit", "hold")]
    found += [
        _stage("prepare-done", first, DONE),
        _stage("prepare-later-done", [*prepare, _label(names.LABEL_ATTEMPT, "NotIn", "1")], DONE),
    ]
    deleted = [
        _key(".metadata.deletionTimestamp", "Exists"),
        _key(f'.metadata.annotations["{PREFIX}stays"]', "DoesNotExist"),
    ]
    found += [
        _stage("pod-stops", [*deleted, _phase("Running")], STOPPED),
        _stage("pod-goes", [*deleted, _phase("Pending", "Succeeded", "Failed")], delete=True),
    ]
    return found


def _stage(
    name: str, expressions: Sequence[Object], status: str = "", kind: str = "Pod", *, delete: bool = False
) -> Object:
    after: Object = {"delete": True} if delete else {"statusTemplate": status}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": list(expressions)},
            "next": after,
        },
    }


def _key(key: str, operator: str, *values: str) -> Object:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def _label(name: str, operator: str, *values: str) -> Object:
    return _key(f'.metadata.labels["{name}"]', operator, *values)


def _end(role: Role, operator: str, *values: str) -> Object:
    return _key(f'.metadata.annotations["{PREFIX}{role.value}"]', operator, *values)


def _alive() -> Object:
    return _key(".metadata.deletionTimestamp", "DoesNotExist")


def _phase(*phases: str) -> Object:
    return _key(".status.phase", "In", *phases)


def _no_index() -> Object:
    return _key(f'.metadata.annotations["{PREFIX}index"]', "In", "")


def _own_index() -> Object:
    index = '.metadata.annotations["batch.kubernetes.io/job-completion-index"]'
    return _key(f'select({index} == .metadata.annotations["{PREFIX}index"]) | .metadata.name', "Exists")


def _node_ready() -> Object:
    expression = _key('.status.conditions.[] | select( .type == "Ready" ) | .status', "NotIn", "True")
    return _stage("node-ready", [expression], NODE_READY, "Node")


def _annotation(name: str) -> str:
    return f'index .metadata.annotations "{PREFIX}{name}"'


NODE_READY = """
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- {lastHeartbeatTime: {{ $now | Quote }}, lastTransitionTime: {{ $now | Quote }}, message: {{ .message | Quote }},
   reason: {{ .reason | Quote }}, status: {{ .status | Quote }}, type: {{ .type | Quote }}}
{{ end }}
addresses:
- {address: {{ NodeIP | Quote }}, type: InternalIP}
"""
_CONTAINERS = """
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: {{ .image | Quote }}
  restartCount: 0
  ready: READY
  state: STATE
{{ end }}
"""


def _containers(state: str, *, ready: bool = False) -> str:
    return _CONTAINERS.replace("READY", str(ready).lower()).replace("STATE", state)


def _terminated(code: str, reason: str, message: str) -> str:
    start = "(index $pod.status.containerStatuses 0).state.running.startedAt"
    return _containers(
        f"{{running: null, waiting: null, terminated: {{exitCode: {code}, reason: {reason}, message: {message}, "
        f"startedAt: {{{{ {start} | Quote }}}}, finishedAt: {{{{ $now | Quote }}}}}}}}"
    )


def _quoted(name: str) -> str:
    return "{{ index $pod.metadata.annotations " + f'"{PREFIX}{name}"' + " | Quote }}"


_HEAD = "{{ $now := Now }}\n{{ $pod := . }}\n"
_DISRUPTION = (
    "{{ if " + _annotation("disruption") + " }}\nconditions:\n- {type: DisruptionTarget, status: 'True', "
    "lastTransitionTime: {{ $now | Quote }}, message: played, reason: " + _quoted("disruption") + "}\n{{ end }}\n"
)
RUNNING = (
    _HEAD
    + "phase: Running\nstartTime: {{ $now | Quote }}\n"
    + _containers("{running: {startedAt: {{ $now | Quote }}}, waiting: null}", ready=True)
)
ENDED = (
    _HEAD
    + "phase: Failed\nreason: "
    + _quoted("pod-reason")
    + "\nmessage: "
    + _quoted("pod-message")
    + "\n"
    + _DISRUPTION
    + _terminated(
        "{{ index $pod.metadata.annotations " + f'"{PREFIX}code"' + " }}", _quoted("reason"), _quoted("message")
    )
)
REJECTED = _HEAD + "phase: Failed\nreason: " + _quoted("pod-reason") + "\nmessage: " + _quoted("pod-message") + "\n"
WAITING = (
    _HEAD
    + "phase: Pending\nstartTime: {{ $now | Quote }}\n"
    + _containers("{waiting: {reason: " + _quoted("reason") + ", message: " + _quoted("message") + "}}")
)
_SAVED: dict[str, Any] = {"reason": "Interrupted", "message": "Stopped by SIGTERM; the checkpoint is saved.", "step": 7}
STOPPED = _HEAD + "phase: Failed\n" + _terminated("30", "Error", json.dumps(json.dumps(_SAVED)))
DONE = _HEAD + "phase: Succeeded\n" + _terminated("0", "Completed", json.dumps(json.dumps(PREPARED)))
