"""What an attempt on a TPU slice needs of its nodes: labels, taints, all chips of each, and one node pool for all."""

from __future__ import annotations

from collections.abc import Mapping

from gemmatune_api import accelerators, gke, names
from gemmatune_api.layout import Layout
from gemmatune_api.placement import TpuSpec
from gemmatune_api.scratch import pod_bytes
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Overrides, Plan
from gemmatune_operator.manifests import resources, service
from gemmatune_operator.manifests.pod import Needs, value
from gemmatune_operator.manifests.quantities import GI
from gemmatune_operator.ports import Object

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
"""Annotation that the Job controller gives to the pods of an Indexed Job."""
SHARED_MEMORY_EACH = GI
"""Bytes of /dev/shm for each chip of a pod."""


def needs(spec: FineTuneSpec, tpu: TpuSpec, laid: Layout, plan: Plan, overrides: Overrides) -> Needs:
    """Nearly all of the machine with those chips: nobody else can use its rest."""
    known = accelerators.tpu(tpu.type)
    machine = known.machine(laid.per_host) if known is not None else None
    shared = laid.per_host * SHARED_MEMORY_EACH
    found = resources.combine(
        resources.whole(machine, plan.disk)
        if machine is not None
        else resources.Resources.of("1", resources.memory(plan.host_memory + shared), pod_bytes(plan.disk)),
        wanted=spec.pod.resources if spec.pod else None,
        raised={resources.MEMORY: overrides.memory, resources.DISK: overrides.ephemeral_storage},
        devices={gke.TPU: laid.per_host},
    )
    return Needs(
        resources=found,
        shared_memory=shared,
        node_selector={
            gke.TPU_TYPE: tpu.type,
            gke.TPU_TOPOLOGY: tpu.topology,
            # 2x4 is one machine with 8 chips or two with 4: the topology alone does not tell.
            gke.ACCELERATOR_COUNT: str(laid.per_host),
        },
        tolerations=[{"key": gke.TPU, "operator": "Exists"}],
    )


def one_node_pool(labels: Mapping[str, str]) -> Object:
    """Affinity that keeps the pods of an attempt in one node pool, which is one slice, and others out of it.

    Two attempts that each held half of two slices would wait for each other for ever. Slices are shared by all
    namespaces, so pods of every namespace keep away; an earlier attempt of the same run counts as another one.
    """
    own = {name: labels[name] for name in (names.LABEL_RUN_UID, names.LABEL_ATTEMPT, names.LABEL_ROLE)}
    role = {names.LABEL_ROLE: own[names.LABEL_ROLE]}
    other_runs = {"key": names.LABEL_RUN_UID, "operator": "NotIn", "values": [own[names.LABEL_RUN_UID]]}
    other_attempts = {"key": names.LABEL_ATTEMPT, "operator": "NotIn", "values": [own[names.LABEL_ATTEMPT]]}
    same_run = {**role, names.LABEL_RUN_UID: own[names.LABEL_RUN_UID]}
    apart = [
        {"matchLabels": role, "matchExpressions": [other_runs]},
        {"matchLabels": same_run, "matchExpressions": [other_attempts]},
    ]
    together = {"labelSelector": {"matchLabels": own}, "topologyKey": gke.NODE_POOL}
    return {
        "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [together]},
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": selector, "namespaceSelector": {}, "topologyKey": gke.NODE_POOL} for selector in apart
            ]
        },
    }


def workers(job: str, hosts: int) -> list[Object]:
    """The variables by which the hosts of a slice find each other; on GKE its webhook sets them."""
    if hosts == 1:
        return [value("TPU_WORKER_ID", "0"), value("TPU_WORKER_HOSTNAMES", "localhost")]
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX_ANNOTATION}']"}}
    return [
        {"name": "TPU_WORKER_ID", "valueFrom": index},
        value("TPU_WORKER_HOSTNAMES", ",".join(service.host(job, number) for number in range(hosts))),
    ]
