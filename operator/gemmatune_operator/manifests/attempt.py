"""What one attempt is made of: a Job that runs the trainer on the accelerator, and a Service for several pods."""

from __future__ import annotations

import dataclasses

from gemmatune_api.defaults import backend_of
from gemmatune_api.layout import Layout, layout
from gemmatune_api.names import Role, job_name
from gemmatune_api.placement import PodSpec
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.spec import GemmaFineTune
from gemmatune_api.status import Attempt, Overrides, Plan
from gemmatune_operator.manifests import backend, capacity, cpu, credentials, gpu, launch, pod, service, tpu
from gemmatune_operator.manifests.capacity import Capacity
from gemmatune_operator.manifests.job import indexed, labels
from gemmatune_operator.manifests.job import job as whole_job
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings


def objects(
    resource: GemmaFineTune, config: RunConfig, plan: Plan, attempt: Attempt, settings: Settings
) -> list[Object]:
    """The objects of an attempt in the order of their creation.

    resource carries its resolved spec and the status in which the attempt is recorded. The same arguments give the
    same objects: a recorded attempt whose Job is absent can be created again.
    """
    job_ = job(resource, config, plan, attempt, settings)
    several = layout(resource.spec).hosts > 1
    return [service.service(resource, attempt.number), job_] if several else [job_]


def job(resource: GemmaFineTune, config: RunConfig, plan: Plan, attempt: Attempt, settings: Settings) -> Object:
    """The Job of an attempt; with several pods an Indexed one, whose first lost pod ends it."""
    spec, laid = resource.spec, layout(resource.spec)
    mode = attempt.provisioning or capacity.ON_DEMAND
    obtained = capacity.capacity(resource, mode)
    needs = _needs(resource, laid, plan, attempt, obtained, settings)
    marked = labels(resource, Role.TRAIN, attempt.number)
    template = pod.template(spec, Role.TRAIN, marked, config, needs, settings)
    made = whole_job(
        resource, Role.TRAIN, attempt.number, template, capacity.active_deadline(resource, mode), obtained.job_labels
    )
    if obtained.job_annotations:
        made["metadata"]["annotations"] = obtained.job_annotations
    return indexed(made, laid.hosts) if laid.hosts > 1 else made


def _needs(
    resource: GemmaFineTune, laid: Layout, plan: Plan, attempt: Attempt, obtained: Capacity, settings: Settings
) -> pod.Needs:
    """What the pods need: of the accelerator's nodes, of the capacity's mode, and to find each other."""
    spec, wanted = resource.spec, resource.spec.pod or PodSpec()
    name = job_name(resource.metadata.name, Role.TRAIN, attempt.number)
    placed = _placed(resource, laid, plan, attempt.overrides or Overrides())
    environment = [*placed.environment, *backend.environment(spec, laid)]
    affinity: Object = {}
    if spec.accelerator.tpu is not None:
        if not settings.tpu_webhook:
            environment += tpu.workers(name, laid.hosts)
        if laid.hosts > 1:
            affinity = tpu.one_node_pool(labels(resource, Role.TRAIN, attempt.number))
    return dataclasses.replace(
        placed,
        command=_command(resource, name, laid, attempt.provisioning or capacity.ON_DEMAND),
        grace=obtained.grace,
        subdomain=name if laid.hosts > 1 else "",
        affinity=affinity,
        node_selector={**(wanted.node_selector or {}), **placed.node_selector, **obtained.node_selector},
        tolerations=[
            *placed.tolerations,
            *obtained.tolerations,
            *(toleration.model_dump(by_alias=True, exclude_none=True) for toleration in wanted.tolerations or []),
        ],
        annotations=obtained.annotations,
        environment=[*environment, *credentials.environment(spec, Role.TRAIN)],
    )


def _placed(resource: GemmaFineTune, laid: Layout, plan: Plan, overrides: Overrides) -> pod.Needs:
    spec = resource.spec
    if spec.accelerator.gpu is not None:
        return gpu.needs(spec, spec.accelerator.gpu, laid, plan, overrides)
    if spec.accelerator.tpu is not None:
        return tpu.needs(spec, spec.accelerator.tpu, laid, plan, overrides)
    return cpu.needs(spec, plan, overrides)


def _command(resource: GemmaFineTune, job: str, laid: Layout, mode: str) -> list[str]:
    """One process a pod, but with torch one a GPU; the launcher where there are several processes."""
    spec = resource.spec
    backend = backend_of(spec)
    if laid.chips == 1 or (backend != "torch" and laid.hosts == 1):
        return launch.trainer(Role.TRAIN)
    laid = laid if backend == "torch" else dataclasses.replace(laid, per_host=1)
    queued = spec.scheduling is not None and spec.scheduling.queue_name is not None
    unbounded = mode in capacity.UNBOUNDED or queued
    wait = launch.longest_wait(spec.limits, unbounded=unbounded)
    if backend == "keras":
        return launch.launcher(job, laid, wait, service.COORDINATOR_PORT)
    return launch.launcher(job, laid, wait)
