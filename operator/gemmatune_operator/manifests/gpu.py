"""What an attempt on GPUs needs of its node: labels, taints, the machine's share and the driver's libraries."""

from __future__ import annotations

import math

from gemmatune_api import accelerators
from gemmatune_api.placement import GpuSpec
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Overrides, Plan
from gemmatune_operator.manifests import resources
from gemmatune_operator.manifests.pod import Needs, value
from gemmatune_operator.manifests.quantities import GI

TYPE_LABEL = "cloud.google.com/gke-accelerator"
RESOURCE = "nvidia.com/gpu"
DRIVER_LIBRARIES = "/usr/local/nvidia/lib64"
"""Where GKE mounts the driver's libraries."""
SHARED_MEMORY = GI
USABLE = 0.85
"""Share of what a node can give that is asked for: the system's own pods need the rest."""


def needs(spec: FineTuneSpec, gpu: GpuSpec, plan: Plan, overrides: Overrides) -> Needs:
    """Nearly all of the smallest machine that has the GPUs and the host memory: nobody else can use its rest."""
    count = gpu.count or 1
    needed = plan.host_memory + SHARED_MEMORY
    memory, cpu = resources.memory(needed), 1
    machine = accelerators.machine_for(gpu.type, count, int(needed / USABLE))
    if machine is not None:
        memory = int(machine.allocatable_memory * USABLE) // GI * GI
        cpu = math.floor(machine.allocatable_cpu * USABLE)
    found = resources.combine(
        resources.Resources.of(str(cpu), memory, resources.disk(plan.disk)),
        wanted=spec.pod.resources if spec.pod else None,
        raised={resources.MEMORY: overrides.memory, resources.DISK: overrides.ephemeral_storage},
        devices={RESOURCE: count},
    )
    return Needs(
        resources=found,
        shared_memory=SHARED_MEMORY,
        node_selector={TYPE_LABEL: gpu.type},
        tolerations=[{"key": RESOURCE, "operator": "Exists"}],
        environment=[value("LD_LIBRARY_PATH", DRIVER_LIBRARIES)],
    )
