"""What devices of a mesh hold, for backends xla and keras: one chip of a TPU, or a CPU's process with all of them."""

from __future__ import annotations

from dataclasses import replace

from gemmatune_api import memory, memory_mesh, memory_xla
from gemmatune_api.catalog import GemmaModel
from gemmatune_api.memory import Setting
from gemmatune_api.memory_mesh import Mesh
from gemmatune_api.status import PlanMemory

WHOLE_TABLES = 3
"""Copies in fp32 of the embedding that backend keras has at a time on each virtual device of a CPU that gathers it: for
the head, for its gradient, and on their way (read off XLA's account of the compiled pass, on 2, 4 and 8 devices)."""

COMPILER = 768 * memory.MIB
"""Resident size of XLA with what it compiles, beside the libraries (measured: JAX 430 MiB, PyTorch/XLA 750)."""


def estimate(backend: str, model: GemmaModel, setting: Setting, mesh: Mesh, capacity: int) -> PlanMemory:
    """Memory by purpose: of one chip, or on a CPU of the process whose virtual devices share its memory.

    Each virtual device holds what a chip would: what is divided is there once, what is whole as often as there are
    devices, and what is kept for the backward pass once for each group along data.
    """
    chip = memory_xla.estimate if backend == "xla" else memory_mesh.estimate
    if setting.device != "cpu":
        return chip(model, setting, mesh, capacity)
    as_chip = replace(setting, device="tpu")
    one: PlanMemory = chip(model, as_chip, mesh, capacity)
    gathered = memory_xla.gathered if backend == "xla" else memory_mesh.gathered
    weights = one.weights - gathered(model, as_chip, mesh) + made_on_cpu(backend, model, as_chip, mesh)
    devices, rest = mesh[0] * mesh[1], COMPILER + memory.overhead(model, setting)
    return PlanMemory(
        weights=devices * weights,
        gradients=devices * one.gradients,
        optimizer=devices * one.optimizer,
        activations=devices * one.activations,
        logits=devices * one.logits,
        overhead=rest,
        total=devices * (one.total - one.overhead - one.weights + weights) + rest,
        capacity=capacity,
    )


def made_on_cpu(backend: str, model: GemmaModel, setting: Setting, mesh: Mesh) -> int:
    """Bytes of weights that a virtual device makes of its own: copies in fp32, and what it gathers from data.

    XLA's CPUs multiply 16-bit numbers in fp32, and keep copies and gathered matrices of all layers until the backward
    pass has used them; a TPU does neither. Backend xla leaves the embedding divided for its head (measured).
    """
    table = memory_mesh.part(model.vocab, mesh[1]) * model.hidden
    layers, narrow = model.linear // mesh[1], setting.activation_bytes == 2
    copies = 4 * (layers + (model.towers if setting.images else 0)) if narrow else 0
    if mesh[0] == 1:
        return copies + (4 * table if narrow else 0)
    if backend == "xla":
        return copies + setting.activation_bytes * layers + (4 * table // mesh[0] if narrow else 0)
    return copies + setting.activation_bytes * layers + (2 * table if narrow else 0) + 4 * WHOLE_TABLES * table
