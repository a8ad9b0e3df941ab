"""The rules for what a spec adds to pods: what the API server would refuse in a Job is refused here, with its path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal

from gemmatune_api import gke, quantity
from gemmatune_api.errors import Problem, shown
from gemmatune_api.names import GROUP, LABEL_MANAGED_BY
from gemmatune_api.placement import EnvVar, PodSpec
from gemmatune_api.spec import FineTuneSpec

RESERVED_ENV = ("GEMMATUNE_", "KUBERNETES_SERVICE_")
"""Beginnings of variables that the operator or the kubelet sets."""
DEVICES = (gke.GPU, gke.TPU)
"""Resources that follow from spec.accelerator."""
_ANNOTATION_BYTES = 256 * 1024

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)


def _key_fault(key: str) -> str | None:
    """What is wrong with the key of a label, annotation, taint or resource; None where nothing is."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or _PREFIX.fullmatch(prefix) is None):
        return "the part before / must be a domain name in small letters"
    if _NAME.fullmatch(name) is None:
        return "a key has 1 to 63 letters, digits, -, _ and ., beginning and ending with a letter or digit"
    return None


def _value_fault(value: str) -> str | None:
    if value and _NAME.fullmatch(value) is None:
        return "a label value has at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit"
    return None


def _pod(spec: FineTuneSpec) -> PodSpec:
    return spec.pod or PodSpec()


def labels(spec: FineTuneSpec) -> Iterator[Problem]:
    """Labels, annotations and node selector have the syntax of Kubernetes and leave the operator's keys alone."""
    pod = _pod(spec)
    for field, entries in (
        ("labels", pod.labels),
        ("annotations", pod.annotations),
        ("nodeSelector", pod.node_selector),
    ):
        for key, value in (entries or {}).items():
            path = f'spec.pod.{field}["{key}"]'
            if field != "nodeSelector" and _is_ours(key):
                yield Problem(path, "this key is the operator's", "Use a key of your own.", shown(value))
            fault = _key_fault(key) or (_value_fault(value) if field != "annotations" else None)
            if fault:
                yield Problem(path, fault, "Correct it.", shown({key: value}))
    size = sum(len(key.encode()) + len(value.encode()) for key, value in (pod.annotations or {}).items())
    if size > _ANNOTATION_BYTES:
        yield Problem(
            "spec.pod.annotations", f"must have at most {_ANNOTATION_BYTES} bytes", "Shorten them.", f"{size} bytes"
        )


def _is_ours(key: str) -> bool:
    return key.rpartition("/")[0] == GROUP or key == LABEL_MANAGED_BY


def selectors(spec: FineTuneSpec) -> Iterator[Problem]:
    """Node labels that follow from other fields are left to them: two places could contradict each other."""
    follows = dict(gke.FOLLOWS)
    if spec.accelerator.tpu is not None:
        follows[gke.ACCELERATOR_COUNT] = "spec.accelerator.tpu.chipsPerNode"
    for key, value in (_pod(spec).node_selector or {}).items():
        if key in follows:
            path, field = f'spec.pod.nodeSelector["{key}"]', follows[key]
            yield Problem(path, f"follows from {field}", f"Remove it, and set {field}.", shown(value))


def tolerations(spec: FineTuneSpec) -> Iterator[Problem]:
    """Tolerations say one thing."""
    for index, item in enumerate(_pod(spec).tolerations or []):
        path = f"spec.pod.tolerations[{index}]"
        fault = _key_fault(item.key) or _value_fault(item.value or "") if item.key else None
        if fault:
            yield Problem(path, fault, "Correct it.", shown(item.key))
        if not item.key and item.operator != "Exists":
            yield Problem(path, "without a key needs operator Exists", "Set operator to Exists, or name a key.")
        if item.operator == "Exists" and item.value:
            yield Problem(f"{path}.value", "has no meaning with operator Exists", "Remove it.", shown(item.value))
        if item.toleration_seconds is not None and item.effect != "NoExecute":
            yield Problem(
                f"{path}.tolerationSeconds",
                "has no meaning without effect NoExecute",
                "Remove it, or set effect to NoExecute.",
                shown(item.toleration_seconds),
            )


def resources(spec: FineTuneSpec) -> Iterator[Problem]:
    """Quantities can be read, requests do not exceed limits, devices follow from the accelerator."""
    block = _pod(spec).resources
    if block is None:
        return
    requests, limits = block.requests or {}, block.limits or {}
    for field, entries in (("requests", requests), ("limits", limits)):
        for name, amount in entries.items():
            path = f'spec.pod.resources.{field}["{name}"]'
            if name in DEVICES:
                yield Problem(path, "follows from spec.accelerator", "Remove it.", shown(amount))
            elif fault := _key_fault(name):
                yield Problem(path, fault, "Correct the resource's name.", shown(name))
            elif _read(amount) is None:
                yield Problem(path, "is no quantity", "Write such as 4, 500m or 16Gi.", shown(amount))
    yield from _above_limit(requests, limits)


def _above_limit(requests: Mapping[str, str | int], limits: Mapping[str, str | int]) -> Iterator[Problem]:
    for name in requests.keys() & limits.keys():
        request, limit = _read(requests[name]), _read(limits[name])
        if request is not None and limit is not None and request > limit:
            yield Problem(
                f'spec.pod.resources.requests["{name}"]',
                f"is more than the limit {limits[name]}",
                "Lower it, or raise the limit.",
                shown(requests[name]),
            )


def _read(amount: str | int) -> Decimal | None:
    try:
        return quantity.parse(amount)
    except ValueError:
        return None


def environment(spec: FineTuneSpec) -> Iterator[Problem]:
    """Variables have one source, appear once, and leave the operator's names alone."""
    seen: dict[str, int] = {}
    for index, variable in enumerate(_pod(spec).env or []):
        path = f"spec.pod.env[{index}]"
        if variable.name.startswith(RESERVED_ENV):
            yield Problem(
                f"{path}.name",
                f"names that begin with {' or '.join(RESERVED_ENV)} are reserved",
                "Use another name.",
                shown(variable.name),
            )
        if variable.name in seen:
            yield Problem(
                f"{path}.name", f"repeats spec.pod.env[{seen[variable.name]}]", "Remove one.", shown(variable.name)
            )
        seen.setdefault(variable.name, index)
        yield from _source(variable, path)


def _source(variable: EnvVar, path: str) -> Iterator[Problem]:
    if variable.value is not None and variable.value_from is not None:
        yield Problem(path, "at most one of value and valueFrom is possible", "Remove one.", shown(variable.name))
    source = variable.value_from
    if source is not None and (source.secret_key_ref is None) == (source.config_map_key_ref is None):
        yield Problem(
            f"{path}.valueFrom",
            "exactly one of secretKeyRef and configMapKeyRef is required",
            "Set one of them.",
            shown(source.model_dump(by_alias=True, exclude_none=True)),
        )
