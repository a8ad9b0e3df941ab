"""The Job of one attempt: the trainer on the accelerator that the resource asks for."""

from __future__ import annotations

import dataclasses

from gemmatune_api import names
from gemmatune_api.base import seconds
from gemmatune_api.names import Role
from gemmatune_api.placement import PodSpec
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.spec import GemmaFineTune
from gemmatune_api.status import Attempt, Overrides, Plan
from gemmatune_operator.manifests import cpu, credentials, gpu, pod
from gemmatune_operator.manifests.job import job as whole_job
from gemmatune_operator.manifests.job import labels
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings

SPOT = "spot"
SPOT_LABEL = "cloud.google.com/gke-spot"
BACKSTOP_SECONDS = 60


def job(resource: GemmaFineTune, config: RunConfig, plan: Plan, attempt: Attempt, settings: Settings) -> Object:
    """The Job of an attempt; resource carries its resolved spec and the status in which the attempt is recorded.

    The same arguments give the same Job: a recorded attempt whose Job is absent can be created again.
    """
    spec = resource.spec
    wanted = spec.pod or PodSpec()
    overrides = attempt.overrides or Overrides()
    if spec.accelerator.gpu is not None:
        placed = gpu.needs(spec, spec.accelerator.gpu, plan, overrides)
    else:
        placed = cpu.needs(spec, plan, overrides)
    spot = attempt.provisioning == SPOT
    needs = dataclasses.replace(
        placed,
        node_selector={
            **(wanted.node_selector or {}),
            **placed.node_selector,
            **({SPOT_LABEL: "true"} if spot else {}),
        },
        tolerations=[
            *placed.tolerations,
            *([_spot_toleration()] if spot else []),
            *(toleration.model_dump(by_alias=True, exclude_none=True) for toleration in wanted.tolerations or []),
        ],
        # The autoscaler may not move a trainer to another node; spot nodes go away whatever it says.
        annotations={} if spot else {names.ANNOTATION_SAFE_TO_EVICT: "false"},
        environment=[*placed.environment, *credentials.environment(spec, Role.TRAIN)],
    )
    template = pod.template(spec, Role.TRAIN, labels(resource, Role.TRAIN, attempt.number), config, needs, settings)
    return whole_job(resource, Role.TRAIN, attempt.number, template, _active_deadline(resource))


def _active_deadline(resource: GemmaFineTune) -> int | None:
    """Seconds after which Kubernetes ends the Job, should the operator be away when limits.deadline expires.

    The Job's clock runs while it waits for its node, which limits.deadline does not count: so the longest wait is
    added. None where the run has no deadline.
    """
    limits = resource.spec.limits
    if limits is None or limits.deadline is None:
        return None
    timers = (resource.status or {}).get("timers") or {}
    rest = max(0, seconds(limits.deadline) - int(timers.get("activeSeconds", 0)))
    wait = seconds(limits.pending_deadline) if limits.pending_deadline else 0
    return rest + wait + BACKSTOP_SECONDS


def _spot_toleration() -> Object:
    return {"key": SPOT_LABEL, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
