"""The merge's Job: adapter and base become 16-bit weights on a CPU node with the memory for one model."""

from __future__ import annotations

from gemmatune_api import names
from gemmatune_api.names import Role
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.scratch import pod_bytes
from gemmatune_api.spec import GemmaFineTune
from gemmatune_api.status import Overrides, PlanMerge
from gemmatune_operator.manifests import credentials, pod, prepare, resources
from gemmatune_operator.manifests.job import job as whole_job
from gemmatune_operator.manifests.job import labels
from gemmatune_operator.manifests.quantities import GI
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings

CPU = "2"
SHARED_MEMORY = GI // 4


def job(
    resource: GemmaFineTune, config: RunConfig, plan: PlanMerge, overrides: Overrides, number: int, settings: Settings
) -> Object:
    """The Job of merge `number`, on the same nodes as the preparation's (see there).

    It has no deadline of its own: limits.deadline bounds training.
    """
    spec = resource.spec
    found = resources.combine(
        resources.Resources.of(CPU, resources.memory(plan.memory + SHARED_MEMORY), pod_bytes(plan.disk)),
        wanted=None,
        raised={resources.MEMORY: overrides.memory, resources.DISK: overrides.ephemeral_storage},
    )
    needs = pod.Needs(
        resources=found,
        shared_memory=SHARED_MEMORY,
        grace=30,
        tolerations=prepare.tolerations(spec),
        annotations={names.ANNOTATION_SAFE_TO_EVICT: "false"},  # a merge that is moved begins anew
        environment=credentials.environment(spec, Role.MERGE),
    )
    config = config.model_copy(update={"backend": "torch", "device": "cpu"})
    template = pod.template(spec, Role.MERGE, labels(resource, Role.MERGE, number), config, needs, settings)
    return whole_job(resource, Role.MERGE, number, template)
