"""All that touches torch_xla: the mesh of chips, what lies where on it, when it computes, and what was compiled.

Another bridge from PyTorch to TPUs replaces this module alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_NO_SPECIAL_SCALARS", "1")  # a rate that becomes 0 or 1 must not compile the step anew

import numpy as np
import torch
import torch_xla
import torch_xla.backends
import torch_xla.debug.metrics
import torch_xla.runtime
from torch import Tensor, nn
from torch_xla.core import xla_model
from torch_xla.distributed import spmd
from torch_xla.utils.checkpoint import checkpoint

from gemmatune_api.sharding import DATA, MODEL, Spec
from gemmatune_trainer.backends.sharding import rows_of_host
from gemmatune_trainer.errors import AcceleratorMissing, InvalidConfig, text_of

_STATM, _PAGE_BYTES = Path("/proc/self/statm"), os.sysconf("SC_PAGE_SIZE")
KIND = "xla"
"""The device's name in PyTorch, also for autocast."""


class Chips:
    """All chips of the run as one mesh of data x model; what is placed on them is divided as its spec says."""

    def __init__(self, mesh: tuple[int, int] | None) -> None:
        """Takes the chips.

        Raises:
            AcceleratorMissing: they do not start. PJRT_DEVICE says which they are, and no others are taken for them.
            InvalidConfig: there are others than the mesh says.
        """
        try:
            torch_xla.runtime.use_spmd()
            self.count: int = torch_xla.runtime.global_runtime_device_count()
        except (RuntimeError, OSError) as error:
            kind = torch_xla.runtime.device_type()
            raise AcceleratorMissing(f"the node's {kind} does not start: {text_of(error)}") from error
        self.data, self.model = mesh or (self.count, 1)
        if self.data * self.model != self.count:
            raise InvalidConfig(
                f"the mesh is data {self.data} x model {self.model}, but there are {self.count} devices",
                "Make mesh.data x mesh.model the number of chips.",
            )
        self.device = torch_xla.device()
        self.processes: int = torch_xla.runtime.process_count()
        self.process: int = torch_xla.runtime.process_index()
        self._mesh = spmd.Mesh(np.arange(self.count), (self.data, self.model), (DATA, MODEL))
        self._divisions: dict[Spec, Any] = {}

    def mark(self, value: Tensor, spec: Spec) -> Tensor:
        """Divides a tensor that is on the chips already; the same tensor.

        spmd.mark_sharding does no more, but looks on the disk for two packages at each of a step's thousand calls.
        """
        if spec not in self._divisions:
            self._divisions[spec] = self._mesh.get_op_sharding(spec)
        if value.dim() != len(spec):
            raise ValueError(f"a tensor of {value.dim()} dimensions, divided as {spec}")
        torch_xla._XLAC._xla_mark_sharding(value, self._divisions[spec])
        return value

    def place(self, value: Tensor, spec: Spec) -> Tensor:
        """A tensor of the host on the chips; every host has the whole of it."""
        return self.mark(value.to(self.device), spec)

    def place_rows(self, arrays: Sequence[Any], spec: Spec) -> list[Tensor]:
        """Arrays on the chips, divided along their first dimension; of several hosts each gives the rows of its chips.

        Every host is called with the whole arrays.
        """
        mine = rows_of_host(arrays[0].shape[0], self.model, self.processes, self.process)
        sharding = spmd.ShardingSpec(self._mesh, spec, minibatch=mine is not None)
        tensors = [torch.from_numpy(array if mine is None else array[mine]) for array in arrays]
        found: list[Tensor] = xla_model.send_cpu_data_to_device(tensors, self.device, input_sharding=sharding)
        return found

    def bytes_of(self, value: Tensor) -> int:
        """Bytes that a tensor takes of each chip of this host, the most of them."""
        (shards,) = torch_xla._XLAC._get_local_shards([value])
        return max(shard.nbytes for shard, _ in shards)


def multiply(*, exactly: bool) -> None:
    """Says how fp32 is multiplied, before anything is compiled: a TPU does it in bf16 where nothing is said."""
    wanted: Any = "highest" if exactly else "default"
    if torch_xla.backends.get_mat_mul_precision() != wanted:
        torch_xla.backends.set_mat_mul_precision(wanted)


def compute() -> None:
    """Runs what was written down since the last time; does not wait for it."""
    torch_xla.sync()


def finish() -> None:
    """Waits until all that was written down is done."""
    torch_xla.sync(wait=True)


def on_host(value: Tensor) -> Tensor:
    """The whole tensor on the host; all processes must ask.

    On one host the parts are put together there; asking for the whole would compile a program for every shape.
    """
    value = value.detach()
    divided = value.device.type == KIND and torch_xla._XLAC._get_xla_sharding_spec(value)
    if not divided or torch_xla.runtime.process_count() > 1:
        return value.to("cpu", copy=True)
    (places,) = torch_xla._XLAC._get_local_shard_replica_and_indices([value])
    (shards,) = torch_xla._XLAC._get_local_shards([value])
    found = torch.empty(value.shape, dtype=value.dtype)
    for (shard, _), (_, place) in zip(shards, places, strict=True):
        if place is Ellipsis:
            return shard.clone()
        part = tuple(slice(0, range_.stop - range_.start) for range_ in place)
        found[tuple(place)] = shard[part]
    return found


def in_turn(values: list[Tensor]) -> None:
    """Keeps what follows from being computed before all of these are there, and so from being in memory with it."""
    xla_model.optimization_barrier_(values)


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call whose inner values are computed again in the backward pass."""
    return checkpoint(function, *arguments, use_reentrant=True)


def compilations() -> tuple[int, float]:
    """How often something was compiled so far, and the seconds that it took."""
    found = torch_xla.debug.metrics.metric_data("CompileTime")
    return (int(found[0]), found[1] / 1e9) if found else (0, 0.0)


def set_random_state(state: int) -> None:
    """Lets the chips' random numbers begin at a number."""
    xla_model.set_rng_state(state)


def memory() -> int:
    """Bytes: of a TPU's chip the most that was allocated so far, of a CPU what the process has in memory now."""
    if torch_xla.runtime.device_type() == "CPU":
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    found = torch_xla._XLAC._xla_memory_info(f"{torch_xla.runtime.device_type()}:0")
    return int(found.get("peak_bytes_used") or found["bytes_used"])


def watch(module: nn.Module, chips: Chips, spec: Callable[[Tensor], Spec]) -> None:
    """Divides what a module gives back."""

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        chips.mark(first := output[0] if isinstance(output, tuple) else output, spec(first))

    module.register_forward_hook(hook)
