"""The pod template that every Job shares: one unprivileged container, its scratch volumes and environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemmatune_api import gke, names
from gemmatune_api.claims import claims
from gemmatune_api.defaults import backend_of
from gemmatune_api.names import Role
from gemmatune_api.placement import EnvVar, PodSpec, Toleration
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.scratch import TMP_BYTES, cache_bytes
from gemmatune_api.spec import FineTuneSpec
from gemmatune_operator.manifests import launch
from gemmatune_operator.manifests.quantities import parse, text
from gemmatune_operator.manifests.resources import DISK, Resources
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings

USER = 1000
"""User and group of the trainer's process and of its volumes."""
NOT_READY_SECONDS = 30
"""How long a pod stays on a node that is away (Kubernetes: 300): the next attempt is worth more than the wait."""
ACCELERATOR_TAINTS = (gke.GPU, gke.TPU)
OWN_PREFIX = "GEMMATUNE_"
ENVIRONMENT = {
    "HOME": names.DEFAULT_CACHE,
    "HF_HOME": f"{names.DEFAULT_CACHE}/huggingface",
    "TRITON_CACHE_DIR": f"{names.DEFAULT_CACHE}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{names.DEFAULT_CACHE}/inductor",
    "PYTHONUNBUFFERED": "1",
}
"""The root file system is read-only: whatever writes to a home or a cache is sent to /cache."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a pod needs of its node."""

    resources: Resources
    """Requests and limits of the container."""
    shared_memory: int
    """Bytes of /dev/shm; they count against the memory limit."""
    grace: int = 60
    """Seconds between SIGTERM and SIGKILL: a checkpoint takes up to 15, a step before it may take longer."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Object] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    environment: Sequence[Object] = ()
    command: Sequence[str] = ()
    """What runs; empty: the trainer's module with the role."""
    subdomain: str = ""
    """Service that gives the pods of one Job their names."""
    affinity: Mapping[str, Any] = field(default_factory=dict)
    readiness: Mapping[str, Any] | None = None
    """Readiness probe of the container."""


def value(name: str, content: str) -> Object:
    """An environment variable with a value."""
    return {"name": name, "value": content}


def secret(name: str, secret_name: str, key: str) -> Object:
    """An environment variable from a key of a Secret; the pod waits until both exist."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret_name, "key": key}}}


def template(
    spec: FineTuneSpec, role: Role, labels: Mapping[str, str], config: RunConfig, needs: Needs, settings: Settings
) -> Object:
    """The pod template of a Job. It meets the Pod Security level `restricted`."""
    wanted = spec.pod or PodSpec()
    pod: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": wanted.service_account_name or names.TRAINER_SERVICE_ACCOUNT,
        # A preparation does not speak to the API server.
        "automountServiceAccountToken": role is not Role.PREPARE,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": needs.grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [*_away(), *needs.tolerations, *_installed(role, needs, settings)],
        "containers": [_container(spec, role, config, needs, settings)],
        "volumes": [*_volumes(needs), *_claim_volumes(claims(spec, role))],
    }
    if needs.subdomain:
        pod["subdomain"] = needs.subdomain
    if needs.affinity:
        pod["affinity"] = dict(needs.affinity)
    if needs.node_selector:
        pod["nodeSelector"] = dict(needs.node_selector)
    if wanted.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": reference.name} for reference in wanted.image_pull_secrets]
    if wanted.priority_class_name:
        pod["priorityClassName"] = wanted.priority_class_name
    metadata: Object = {"labels": {**(wanted.labels or {}), **labels}}
    annotations = {**(wanted.annotations or {}), **needs.annotations}
    if annotations:
        metadata["annotations"] = annotations
    return {"metadata": metadata, "spec": pod}


def _container(spec: FineTuneSpec, role: Role, config: RunConfig, needs: Needs, settings: Settings) -> Object:
    wanted = spec.pod or PodSpec()
    own = [value(names.ENV_RUN, config.to_env()), *(value(*item) for item in ENVIRONMENT.items()), *needs.environment]
    installed = [value(*item) for item in settings.trainer_env.items()]
    users = [_user_variable(variable) for variable in wanted.env or [] if not variable.name.startswith(OWN_PREFIX)]
    probe = {"readinessProbe": dict(needs.readiness)} if needs.readiness is not None else {}
    return {
        "name": names.CONTAINER,
        "image": _image(spec, config, settings),
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(needs.command) or launch.trainer(role),
        "env": list({variable["name"]: variable for variable in [*own, *installed, *users]}.values()),
        "resources": {"requests": dict(needs.resources.requests), "limits": dict(needs.resources.limits)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **probe,
        "volumeMounts": [
            {"name": "cache", "mountPath": names.DEFAULT_CACHE},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *_claim_mounts(claims(spec, role)),
        ],
    }


def _image(spec: FineTuneSpec, config: RunConfig, settings: Settings) -> str:
    """The user's image where the pod runs the backend of the run; a merge of an xla or keras run needs torch."""
    asked = spec.pod.image if spec.pod and config.backend == backend_of(spec) else None
    return asked or settings.image_of(config.backend)


def _volumes(needs: Needs) -> list[Object]:
    """Scratch space inside the limits: what outgrows it ends as DiskFull, not as a full node."""
    cache = cache_bytes(int(parse(needs.resources.limits[DISK])))
    return [
        {"name": "cache", "emptyDir": {"sizeLimit": text(cache)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": text(TMP_BYTES)}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": text(needs.shared_memory)}},
    ]


def _claim_volumes(found: Sequence[str]) -> list[Object]:
    return [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for number, claim in enumerate(found)
    ]


def _claim_mounts(found: Sequence[str]) -> list[Object]:
    return [
        {"name": f"claim-{number}", "mountPath": f"{names.DEFAULT_CLAIMS}/{claim}", "readOnly": True}
        for number, claim in enumerate(found)
    ]


def _away() -> list[Object]:
    return [
        {
            "key": f"node.kubernetes.io/{condition}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": NOT_READY_SECONDS,
        }
        for condition in ("not-ready", "unreachable")
    ]


def opens_accelerators(toleration: Toleration) -> bool:
    """Whether it would let a pod onto a node with accelerators, where preparation and merge have no business."""
    return not toleration.key or toleration.key in ACCELERATOR_TAINTS


def _installed(role: Role, needs: Needs, settings: Settings) -> list[Object]:
    """The installation's tolerations, but for those that are there already."""
    wanted = [item for item in settings.tolerations if role is Role.TRAIN or not opens_accelerators(item)]
    found = [item.model_dump(by_alias=True, exclude_none=True) for item in wanted]
    return [toleration for toleration in found if toleration not in needs.tolerations]


def _user_variable(variable: EnvVar) -> Object:
    written: Object = variable.model_dump(by_alias=True, exclude_none=True)
    return written
