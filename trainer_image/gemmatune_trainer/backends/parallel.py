"""One model on several processes: a copy on each (DDP), or each layer divided among all of them (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gemmatune_trainer.ranks import Ranks


class Shell(nn.Module):
    """What every use of a model passes through: hooks of DDP and FSDP2 run around `forward` alone.

    `shell(function, ...)` is `function(model, ...)`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The function's result."""
        return function(self.model, *arguments, **options)


def copied(shell: Shell) -> DistributedDataParallel:
    """The shell with gradients that are averaged over the processes; each of them loads the same weights."""
    return DistributedDataParallel(shell, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True)


def divide(shell: Shell, layers: nn.ModuleList, ranks: Ranks, device: torch.device, masters: bool, bf16: bool) -> None:
    """Divides weights, gradients and optimizer state among the processes, layer by layer, and moves them to the device.

    `masters`: all weights are trained in fp32; they are gathered in 16 bit with `bf16`, and gradients summed in fp32.
    No more than one layer is whole in a process's memory beside what it keeps.
    """
    mesh = init_device_mesh(device.type, (ranks.size,))
    gathered = torch.bfloat16 if masters and bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer.float() if masters else layer, mesh=mesh, mp_policy=policy)
    fully_shard(shell.float() if masters else shell, mesh=mesh, mp_policy=policy)


def reshard(shell: Shell) -> None:
    """Gives back what a pass without gradients has left whole."""
    if hasattr(shell, "reshard"):
        shell.reshard()


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder's layers."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    decoder = getattr(base.model, "language_model", base.model)
    found: nn.ModuleList = decoder.layers
    return found


def part_like(value: Tensor, whole: Any) -> Any:
    """What this process has of an optimizer's tensor for a weight, divided as the weight is."""
    if not isinstance(value, DTensor) or not isinstance(whole, Tensor) or whole.shape != value.shape:
        return whole
    return distribute_tensor(whole.to(value.device), value.device_mesh, value.placements, src_data_rank=None)


def state_from_main(ranks: Ranks, state: dict[str, Any] | None, device: torch.device) -> dict[str, Any]:
    """A state of rank 0 (nested containers of tensors and plain values) on every rank, its tensors in host memory."""
    tensors: list[Tensor] = []

    def bare(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return _Place(len(tensors) - 1, tuple(value.shape), value.dtype)
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items()}
        return [bare(item) for item in value] if isinstance(value, list) else value

    found: dict[int, Tensor] = {}

    def filled(value: Any) -> Any:
        if isinstance(value, _Place):
            whole = tensors[value.number] if ranks.main else None
            found[value.number] = ranks.broadcast(whole, (value.shape, value.dtype), device).cpu()
            return found[value.number]
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return [filled(item) for item in value] if isinstance(value, list) else value

    outline: dict[str, Any] = filled(ranks.from_main(bare(state)))
    return outline


class _Place:
    """Where a tensor stands in a state, its shape and data type."""

    def __init__(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.number = number
        self.shape = shape
        self.dtype = dtype
