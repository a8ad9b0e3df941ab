"""Observed runs and situations from a few words, for the tests of pure policies."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from gemmatune_api import names
from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Attempt, FineTuneStatus, Plan, PlanMemory
from gemmatune_operator import conditions
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.observe import Observed, Refusal, of_resource
from gemmatune_operator.policies import situation_of
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings
from gemmatune_operator.views import JobView, Machine, PodView
from tests.support.play import NAME, NAMESPACE, SPEC, START

UID = "uid-1"
NOW = START
GIB = 2**30


def resource(spec: Object | None = None, *, generation: int = 1, status: Object | None = None, **meta: Any) -> Object:
    """A stored resource; `spec` replaces whole blocks of the usual one (None takes a block away)."""
    blocks = {**copy.deepcopy(SPEC), **(spec or {})}
    metadata = {"name": NAME, "namespace": NAMESPACE, "uid": UID, "generation": generation, "resourceVersion": "7"}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {**metadata, "creationTimestamp": rfc3339(START), **meta},
        "spec": {name: block for name, block in blocks.items() if block is not None},
        "status": status or {},
    }


def situation(
    raw: Object | None = None,
    *,
    now: datetime = NOW,
    jobs: Iterable[JobView] = (),
    lost_pods: tuple[PodView, ...] = (),
    rivals: tuple[Object, ...] = (),
    machines: Mapping[str, Machine] | None = None,
    refusal: Refusal | None = None,
    still_since: datetime | None = None,
    settings: Settings | None = None,
    namespace_defaults: Mapping[str, Any] | None = None,
) -> Situation:
    """What policies see."""
    observed: Observed = replace(
        of_resource(raw or resource()),
        jobs={job.name: job for job in jobs},
        lost_pods=lost_pods,
        rivals=rivals,
        machines=machines or {},
        namespace_defaults=namespace_defaults or {},
        refusal=refusal,
        still_since=still_since,
    )
    return situation_of(observed, now, settings or Settings())


def job(name: str = "quotes-t1", *pods: PodView, **fields: Any) -> JobView:
    """A Job of the run; open unless the fields say otherwise."""
    usual: dict[str, Any] = {"uid": f"uid-{name}", "owner_uid": UID, "created": NOW, "active": 1}
    own = tuple(replace(item, job=name) for item in pods)
    return JobView(name=name, pods=own, **{**usual, **fields})


def pod(**fields: Any) -> PodView:
    """A pod on node n1 that runs unless the fields say otherwise."""
    usual = {"name": "quotes-t1-abcde", "uid": "uid-pod", "phase": "Running", "node": "n1", "scheduled": True}
    return PodView(**{**usual, **fields})


def ended_pod(code: int | None, **fields: Any) -> PodView:
    """A pod whose container ended."""
    return pod(phase="Succeeded" if code == 0 else "Failed", exit_code=code, **fields)


def failed_job(code: int, name: str = "quotes-t1", **fields: Any) -> JobView:
    """A Job whose pod ended with an exit code."""
    over = {"failed": True, "failure_target": True, "failure_reason": "PodFailurePolicy", "active": 0}
    return job(name, ended_pod(code, **fields), **over)


def plan(**fields: Any) -> Plan:
    """A plan of 4 rows by 4 accumulations."""
    memory = PlanMemory(weights=1, optimizer=1, activations=1, logits=1, total=10 * GIB, capacity=20 * GIB)
    usual: dict[str, Any] = {
        "backend": "torch",
        "method": "qlora",
        "trainable_parameters": 1,
        "micro_batch_size": 4,
        "accumulation": 4,
        "gradient_checkpointing": False,
        "memory": memory,
        "weights_by_bits": {"4": 1},
        "disk": 1,
        "verdict": "fits",
        "generation": 1,
    }
    return Plan(**{**usual, **fields})


def attempt(number: int = 1, **fields: Any) -> Attempt:
    """An attempt that has started."""
    usual = {"job": f"quotes-t{number}", "start_time": rfc3339(NOW)}
    return Attempt(number=number, **{**usual, **fields})


def decision(*attempts: Attempt, true: Iterable[ConditionType] = (), **status: Any) -> Decision:
    """A decision whose status is accepted, prepared and planned."""
    found: list[Any] = []
    for kind in (ConditionType.ACCEPTED, ConditionType.PREPARED, *true):
        found = conditions.put(found, kind, True, Reason.VALID, "", 1, NOW)
    usual: dict[str, Any] = {
        "observed_generation": 1,
        "conditions": found,
        "plan": plan(),
        "attempts": list(attempts),
    }
    return Decision(status=FineTuneStatus(**{**usual, **status}))


def said(decided: Decision, kind: ConditionType) -> tuple[str, str] | None:
    """Status and reason of a condition."""
    found = conditions.find(decided.status.conditions, kind)
    return (found.status, found.reason) if found is not None else None
