"""What devices of a mesh hold, for backends xla and keras: one chip of a TPU, or a CPU's process with all of them."""

from __future__ import annotations

from dataclasses import replace

from gemmatune_api import memory, memory_mesh, memory_xla
from gemmatune_api.catalog import GemmaModel
from gemmatune_api.memory import Setting
from gemmatune_api.memory_mesh import Mesh
from gemmatune_api.status import PlanMemory


def estimate(backend: str, model: GemmaModel, setting: Setting, mesh: Mesh, capacity: int) -> PlanMemory:
    """Memory by purpose: of one chip, or on a CPU of the process whose virtual devices share its memory.

    Each virtual device holds what a chip would: what is divided is there once, what is whole as often as there are
    devices, and what is kept for the backward pass once for each group along data.
    """
    chip = memory_xla.estimate if backend == "xla" else memory_mesh.estimate
    if setting.device != "cpu":
        return chip(model, setting, mesh, capacity)
    one: PlanMemory = chip(model, replace(setting, device="tpu"), mesh, capacity)
    devices, rest = mesh[0] * mesh[1], memory.overhead(model, setting)
    return PlanMemory(
        weights=devices * one.weights,
        gradients=devices * one.gradients,
        optimizer=devices * one.optimizer,
        activations=devices * one.activations,
        logits=devices * one.logits,
        overhead=rest,
        total=devices * (one.total - one.overhead) + rest,
        capacity=capacity,
    )
