"""The plan of a run as its status shows it: memory, batch, mesh, verdict and remedies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemmatune_api.base import StatusModel


class PlanMemory(StatusModel):
    """Memory of one device in bytes, by what it is for."""

    weights: int
    """Base and adapter weights."""
    gradients: int = 0
    """Gradients of the trained weights."""
    optimizer: int
    """Optimizer state."""
    activations: int
    """Activations kept for the backward pass, and the largest workspace."""
    logits: int
    """Logits and their gradient at the labelled positions of one chunk or micro-batch."""
    overhead: int = 0
    """Runtime, allocator and framework."""
    total: int
    """Sum."""
    capacity: int
    """What the device has (host memory on a CPU; 0 where unknown)."""


class PlanMerge(StatusModel):
    """What merging the adapter into the base takes of a CPU node."""

    memory: int
    """Bytes of host memory: one 16-bit model, and a shard on its way to the disk."""
    disk: int
    """Bytes of ephemeral storage: the base's files and the merged ones."""


class Plan(StatusModel):
    """What the planner chose, and whether it fits."""

    backend: str
    """torch, xla or keras."""
    method: str
    """qlora, lora or full."""
    trainable_parameters: int
    """Weights that are trained."""
    exported_parameters: int | None = None
    """Weights of the adapter's file, where these are others: Keras shares weights among heads, PEFT does not."""
    hosts: int = 1
    """Pods of one attempt."""
    chips: int = 1
    """Accelerators of one attempt."""
    mesh: dict[str, int] | None = None
    """Chips along data and model (xla and keras)."""
    sharded: bool | None = None
    """Whether several GPUs divide weights and optimizer state (FSDP2) or each hold a copy (DDP)."""
    micro_batch_size: int
    """Rows per device and forward pass."""
    accumulation: int
    """Forward passes per optimizer step."""
    gradient_checkpointing: bool
    """Whether activations are recomputed."""
    total_steps: int | None = None
    """Optimizer steps; known when maxSteps is set or the data was read."""
    memory: PlanMemory
    """Memory by purpose."""
    weights_by_bits: dict[str, int]
    """Bytes of the base's weights at 32, 16, 8 and 4 bits."""
    disk: int
    """Bytes of ephemeral storage."""
    host_memory: int = 0
    """Bytes of host memory that the trainer needs while it loads and trains."""
    host_capacity: int | None = None
    """Bytes of host memory that a pod gets beside its accelerators; absent where the machine is not known."""
    merge: PlanMerge | None = None
    """The merge Job's share, where output.merge asks for one."""
    verdict: Literal["fits", "tight", "does not fit"]
    """Whether it fits."""
    remedies: Annotated[list[str], Field(max_length=3)] = Field(default_factory=list)
    """What would make it fit."""
    notes: Annotated[list[str], Field(max_length=8)] = Field(default_factory=list)
    """What a user should know about this model or plan."""
    cost_per_hour: float | None = None
    """Cost where a price table is given."""
    generation: int | None = None
    """The metadata.generation of the spec that was planned; an attempt that runs keeps the plan it began with."""

    @property
    def host_short(self) -> bool:
        """Whether a pod needs more host memory than it gets."""
        return self.host_capacity is not None and self.host_memory > self.host_capacity
