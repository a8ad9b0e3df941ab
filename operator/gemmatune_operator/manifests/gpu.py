"""What an attempt on GPUs needs of its nodes: labels, taints, the machine's share and the driver's libraries."""

from __future__ import annotations

from gemmatune_api import accelerators, gke
from gemmatune_api.layout import Layout
from gemmatune_api.placement import GpuSpec
from gemmatune_api.pod_memory import gpu_shared
from gemmatune_api.scratch import pod_bytes
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Overrides, Plan
from gemmatune_operator.manifests import resources
from gemmatune_operator.manifests.pod import Needs, value

DRIVER_LIBRARIES = "/usr/local/nvidia/lib64"
"""Where GKE mounts the driver's libraries."""


def needs(spec: FineTuneSpec, gpu: GpuSpec, laid: Layout, plan: Plan, overrides: Overrides) -> Needs:
    """Nearly all of the smallest machine that has the GPUs and the host memory: nobody else can use its rest."""
    count = laid.per_host
    shared = gpu_shared(count)
    needed = plan.host_memory + shared
    machine = accelerators.machine_for(gpu.type, count, needed)
    found = resources.combine(
        resources.whole(machine, plan.disk)
        if machine is not None
        else resources.Resources.of("1", resources.memory(needed), pod_bytes(plan.disk)),
        wanted=spec.pod.resources if spec.pod else None,
        raised={resources.MEMORY: overrides.memory, resources.DISK: overrides.ephemeral_storage},
        devices={gke.GPU: count},
    )
    tolerations = [{"key": gke.GPU, "operator": "Exists"}]
    known = accelerators.gpu(gpu.type)
    if known is not None and known.cpu_arch == "arm64":
        tolerations.append({"key": gke.ARCH, "operator": "Equal", "value": "arm64", "effect": "NoSchedule"})
    return Needs(
        resources=found,
        shared_memory=shared,
        node_selector={gke.GPU_TYPE: gpu.type},
        tolerations=tolerations,
        environment=[value("LD_LIBRARY_PATH", DRIVER_LIBRARIES)],
    )
