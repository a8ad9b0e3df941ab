"""What an attempt without accelerator needs of its node."""

from __future__ import annotations

from gemmatune_api.scratch import pod_bytes
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Overrides, Plan
from gemmatune_operator.manifests import resources
from gemmatune_operator.manifests.pod import Needs
from gemmatune_operator.manifests.quantities import GI

CPU = "2"
SHARED_MEMORY = GI


def needs(spec: FineTuneSpec, plan: Plan, overrides: Overrides) -> Needs:
    """An ordinary node with the memory that the plan counts: weights and activations lie in host memory here."""
    memory = resources.memory(max(plan.host_memory, plan.memory.total) + SHARED_MEMORY)
    found = resources.combine(
        resources.Resources.of(CPU, memory, pod_bytes(plan.disk)),
        wanted=spec.pod.resources if spec.pod else None,
        raised={resources.MEMORY: overrides.memory, resources.DISK: overrides.ephemeral_storage},
    )
    return Needs(resources=found, shared_memory=SHARED_MEMORY)
