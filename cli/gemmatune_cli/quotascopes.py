"""Which pods a ResourceQuota with scopes counts: the rules of Kubernetes' quota admission, for one pod."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BEST_EFFORT_BY = ("cpu", "memory")
"""The resources that decide about a pod's quality of service."""
_ANY_RUN: Mapping[str, Any] = {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}
"""Stands for the pods of any run: each asks for something, and none has a class or a time of its own."""


def leave_out(quota: Any, pod: Mapping[str, Any] | None) -> str:
    """The scopes of a quota (its spec) that a pod is not in, in words; "" where the quota counts it.

    `pod`: its spec; None: that of any run.
    """
    spec = _ANY_RUN if pod is None else pod
    return ", ".join(
        " ".join(part for part in (scope, operator if operator != "Exists" else "", " or ".join(values)) if part)
        for scope, operator, values in _scopes(quota)
        if not _counts(scope, operator, values, spec)
    )


def _scopes(quota: Any) -> Iterator[tuple[str, str, Sequence[str]]]:
    for scope in quota.scopes or []:
        yield scope, "Exists", ()
    for term in (quota.scope_selector.match_expressions or []) if quota.scope_selector else []:
        yield term.scope_name, term.operator, term.values or ()


def _counts(scope: str, operator: str, values: Sequence[str], pod: Mapping[str, Any]) -> bool:
    match scope:
        case "Terminating":
            return _ends_by_itself(pod)
        case "NotTerminating":
            return not _ends_by_itself(pod)
        case "BestEffort":
            return _best_effort(pod)
        case "NotBestEffort":
            return not _best_effort(pod)
        case "PriorityClass":
            return _selected(pod.get("priorityClassName", ""), operator, values)
        case "CrossNamespacePodAffinity":
            return any(map(_crosses_namespaces, _terms(pod.get("affinity", {}))))
    return True  # a scope of a newer Kubernetes: rather looked at in vain than left out


def _ends_by_itself(pod: Mapping[str, Any]) -> bool:
    """By its own deadline; that of its Job does not count."""
    return pod.get("activeDeadlineSeconds") is not None


def _best_effort(pod: Mapping[str, Any]) -> bool:
    return not any(
        name in item.get("resources", {}).get(kind, {})
        for item in pod["containers"]
        for kind in ("requests", "limits")
        for name in _BEST_EFFORT_BY
    )


def _selected(name: str, operator: str, values: Sequence[str]) -> bool:
    match operator:
        case "In":
            return name in values
        case "NotIn":
            return name not in values
        case "DoesNotExist":
            return not name
    return bool(name)


def _terms(affinity: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind, {})
        yield from rules.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        for preferred in rules.get("preferredDuringSchedulingIgnoredDuringExecution", []):
            yield preferred["podAffinityTerm"]


def _crosses_namespaces(term: Mapping[str, Any]) -> bool:
    """An empty selector is one, too: of all namespaces."""
    return bool(term.get("namespaces")) or term.get("namespaceSelector") is not None
