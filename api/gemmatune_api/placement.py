"""Where and under which limits a run runs: accelerator, provisioning, pod, limits and trackers of the spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gemmatune_api.base import OBJECT_NAME_PATTERN, ApiModel, Duration, ObjectKey, ObjectName, without_nulls
from gemmatune_api.patterns import ENV_NAME_PATTERN, RESERVATION_PATTERN, TOPOLOGY_PATTERN

Quantity = Annotated[
    str | int, Field(json_schema_extra={"x-kubernetes-int-or-string": True}, union_mode="left_to_right")
]
"""A Kubernetes quantity such as `4`, `500m` or `16Gi`."""


StringMap = Annotated[dict[str, str], BeforeValidator(without_nulls), Field(max_length=64)]
QuantityMap = Annotated[dict[str, Quantity], BeforeValidator(without_nulls), Field(max_length=64)]


class SecretRef(ApiModel):
    """A Secret of the run's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: ObjectKey | None = None
    """Key in it. Default by use: HF_TOKEN for hf://, WANDB_API_KEY for wandb, MLFLOW_TRACKING_TOKEN for mlflow."""


class LocalObjectReference(ApiModel):
    """The name of an object in the run's namespace."""

    name: ObjectName
    """Name of the object."""


class GpuSpec(ApiModel):
    """GPUs of a GKE node pool."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    """Value of the node label cloud.google.com/gke-accelerator, such as nvidia-l4."""
    count: Annotated[int, Field(ge=1, le=16)] | None = None
    """GPUs per node. Default 1."""
    nodes: Annotated[int, Field(ge=1, le=256)] | None = None
    """Nodes. Default 1."""


class TpuSpec(ApiModel):
    """A TPU slice of a GKE node pool."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    """Value of the node label cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice."""
    topology: Annotated[str, Field(pattern=TOPOLOGY_PATTERN, max_length=20)]
    """Value of the node label cloud.google.com/gke-tpu-topology, such as 2x4."""
    chips_per_node: Annotated[int, Field(ge=1, le=8)] | None = None
    """Chips per node, only where the topology allows more than one."""


class CpuSpec(ApiModel):
    """No accelerator: a laptop, or an ordinary node."""

    devices: Annotated[int, Field(ge=1, le=64)] | None = None
    """Virtual devices for the xla and keras backends. Default 1."""


class AcceleratorSpec(ApiModel):
    """What trains: exactly one of gpu, tpu and cpu."""

    gpu: GpuSpec | None = None
    """GPUs."""
    tpu: TpuSpec | None = None
    """A TPU slice."""
    cpu: CpuSpec | None = None
    """No accelerator."""

    @property
    def kind(self) -> Literal["gpu", "tpu", "cpu"]:
        """Which of the three is set (the first, should a resource carry several)."""
        return "gpu" if self.gpu else "tpu" if self.tpu else "cpu"


class MeshSpec(ApiModel):
    """How chips are arranged by the xla and keras backends: data x model = chips."""

    data: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Chips along the batch. Default by the planner."""
    model: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Chips along the model's dimensions. Default by the planner."""


class FallbackSpec(ApiModel):
    """When spot capacity gives way to another provisioning mode."""

    mode: Literal["onDemand"] | None = None
    """The mode to fall back to. Default onDemand."""
    after_preemptions: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Preemptions after which the next attempt runs in that mode. Default 3."""
    after_pending: Duration | None = None
    """Pending time after which the attempt is replaced by one in that mode. Default 30m."""


class ProvisioningSpec(ApiModel):
    """How the nodes are obtained."""

    mode: Literal["onDemand", "spot", "flexStart", "reservation"] | None = None
    """Provisioning mode. Default onDemand."""
    reservation: Annotated[str, Field(pattern=RESERVATION_PATTERN, max_length=94)] | None = None
    """Name of the reservation, with mode reservation; PROJECT/NAME for one that another project shares."""
    fallback: FallbackSpec | None = None
    """What follows when spot capacity keeps failing."""


class SchedulingSpec(ApiModel):
    """Who admits the run."""

    queue_name: Annotated[str, Field(min_length=1, max_length=63, pattern=OBJECT_NAME_PATTERN)] | None = None
    """Kueue LocalQueue of the namespace. It admits attempts; the preparation, on a CPU node, does not wait for it."""
    compute_class: Annotated[str, Field(min_length=1, max_length=63, pattern=OBJECT_NAME_PATTERN)] | None = None
    """GKE ComputeClass of the attempts' nodes."""


class Toleration(ApiModel):
    """A Kubernetes toleration."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Taint key; empty with operator Exists means all."""
    operator: Literal["Exists", "Equal"] | None = None
    """Default Equal."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect; absent means all."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds to stay with NoExecute."""


class KeySelector(ApiModel):
    """One key of an object."""

    name: ObjectName
    """Name of the object."""
    key: ObjectKey
    """Key in it."""
    optional: bool | None = None
    """True: the variable stays unset when the object or key is absent."""


class EnvVarSource(ApiModel):
    """Where a variable's value comes from: one of the two."""

    secret_key_ref: KeySelector | None = None
    """A key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """A key of a ConfigMap."""


class EnvVar(ApiModel):
    """An environment variable of the trainer."""

    name: Annotated[str, Field(pattern=ENV_NAME_PATTERN, max_length=253)]
    """Name; names that begin with GEMMATUNE_ are the operator's."""
    value: Annotated[str, Field(max_length=32768)] | None = None
    """Value; at most one of value and valueFrom."""
    value_from: EnvVarSource | None = None
    """Source of the value."""


class ResourceSpec(ApiModel):
    """Requests and limits of the trainer's container, over those that the operator computes."""

    requests: QuantityMap | None = None
    """Requests by resource name."""
    limits: QuantityMap | None = None
    """Limits by resource name."""


class PodSpec(ApiModel):
    """What the operator adds to the pods of the run."""

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Trainer image. Default: the one the operator was installed with."""
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16)] | None = None
    """Secrets for pulling it."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods. Default gemmatune-trainer, which the operator creates."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    node_selector: StringMap | None = None
    """Node labels, added to those that the accelerator needs."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Tolerations, added to those that the accelerator needs."""
    labels: StringMap | None = None
    """Labels of the pods; gemmatune.dev/ is the operator's."""
    annotations: StringMap | None = None
    """Annotations of the pods; gemmatune.dev/ is the operator's."""
    resources: ResourceSpec | None = None
    """Requests and limits."""
    env: Annotated[list[EnvVar], Field(max_length=64)] | None = None
    """Environment variables."""


class LimitsSpec(ApiModel):
    """What the run may use up before it is given up."""

    max_retries: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Counted retries. Default 3."""
    max_preemptions: Annotated[int, Field(ge=0, le=10000)] | None = None
    """Preemptions, lost nodes and interruptions, which count for no retry. Default 20."""
    pending_deadline: Duration | None = None
    """Longest wait of one attempt for its node. Default 24h."""
    deadline: Duration | None = None
    """Training time summed over attempts. Default: none."""
    stall_timeout: Duration | None = None
    """Longest time without a step or heartbeat. Default 15m."""
    max_cost: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Cost in the price table's currency at which the run ends. Default: none."""


class WandbSpec(ApiModel):
    """Weights & Biases."""

    project: Annotated[str, Field(min_length=1, max_length=128)]
    """Project."""
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Team or user. Default: the key's own."""
    secret_ref: SecretRef | None = None
    """Secret with WANDB_API_KEY; absent: offline, as files under output.uri/report/wandb."""


class MlflowSpec(ApiModel):
    """MLflow."""

    uri: Annotated[str, Field(min_length=1, max_length=1024)]
    """Tracking server: http://, https:// or file://."""
    secret_ref: SecretRef | None = None
    """Secret with its token."""


class TrackingSpec(ApiModel):
    """Experiment trackers."""

    tensorboard: bool | None = None
    """Event files under output.uri/report/tensorboard. Default false."""
    wandb: WandbSpec | None = None
    """Weights & Biases."""
    mlflow: MlflowSpec | None = None
    """MLflow."""
