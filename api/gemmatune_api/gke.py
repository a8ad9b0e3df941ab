"""Labels, taints and resources of Google Kubernetes Engine and of Kueue, as manifests and validation write them."""

from __future__ import annotations

from types import MappingProxyType

GPU_TYPE = "cloud.google.com/gke-accelerator"
"""Node label: type of the GPUs."""
GPU = "nvidia.com/gpu"
"""Resource of GPUs, and key of the taint on their nodes."""
TPU_TYPE = "cloud.google.com/gke-tpu-accelerator"
"""Node label: type of the TPU."""
TPU_TOPOLOGY = "cloud.google.com/gke-tpu-topology"
"""Node label: topology of the slice that the node belongs to."""
ACCELERATOR_COUNT = "cloud.google.com/gke-accelerator-count"
"""Node label: accelerators of the node."""
TPU = "google.com/tpu"
"""Resource of TPU chips, and key of the taint on their nodes."""
NODE_POOL = "cloud.google.com/gke-nodepool"
"""Node label: node pool. A slice of several TPU hosts is one."""
ARCH = "kubernetes.io/arch"
"""Key of the taint on nodes with Arm processors."""

SPOT = "cloud.google.com/gke-spot"
"""Node label and taint of spot nodes, `true`."""
FLEX_START = "cloud.google.com/gke-flex-start"
"""Node label and optional taint of flex-start nodes, `true`."""
QUEUED = "cloud.google.com/gke-queued"
"""Taint of nodes that queued provisioning made for one Job."""
RESERVATION_NAME = "cloud.google.com/reservation-name"
RESERVATION_PROJECT = "cloud.google.com/reservation-project"
RESERVATION_AFFINITY = "cloud.google.com/reservation-affinity"
"""Node labels of nodes that use up a reservation; the affinity is `specific`."""
COMPUTE_CLASS = "cloud.google.com/compute-class"
"""Node label: ComputeClass. GKE tolerates its taint by itself."""

FLEX_START_SECONDS = (600, 604800)
"""Shortest and longest run of a flex-start node."""

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a Job: LocalQueue that admits it."""
KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
"""Label of a Job, and of the resource that it comes from: WorkloadPriorityClass."""
KUEUE_MAX_RUN = "provreq.kueue.x-k8s.io/maxRunDurationSeconds"
"""Annotation of a Job: how long queued provisioning keeps its nodes."""

FOLLOWS = MappingProxyType(
    {
        GPU_TYPE: "spec.accelerator",
        TPU_TYPE: "spec.accelerator",
        TPU_TOPOLOGY: "spec.accelerator",
        SPOT: "spec.provisioning.mode",
        FLEX_START: "spec.provisioning.mode",
        RESERVATION_NAME: "spec.provisioning.reservation",
        RESERVATION_PROJECT: "spec.provisioning.reservation",
        RESERVATION_AFFINITY: "spec.provisioning.mode",
        COMPUTE_CLASS: "spec.scheduling.computeClass",
    }
)
"""Node labels that manifests select by, and the field that each follows from."""
