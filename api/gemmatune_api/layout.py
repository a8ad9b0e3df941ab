"""How the accelerators of an attempt are laid out: pods, devices in each, and the mesh that they form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gemmatune_api import accelerators
from gemmatune_api.defaults import TRAINING, backend_of
from gemmatune_api.placement import MeshSpec, TpuSpec
from gemmatune_api.spec import FineTuneSpec


@dataclass(frozen=True, slots=True)
class Layout:
    """Pods and devices of one attempt."""

    hosts: int
    """Pods; each has a node to itself where there are several."""
    per_host: int
    """Devices of each pod."""
    replicas: int
    """Devices, or groups of them, among which the rows of a step are divided."""
    mesh: tuple[int, int] | None = None
    """Devices along data and along model (xla and keras)."""

    @property
    def chips(self) -> int:
        """Devices of the attempt."""
        return self.hosts * self.per_host


def layout(spec: FineTuneSpec) -> Layout:
    """The layout of a spec; defaults count where fields are absent.

    Raises:
        ValueError: a TPU that does not exist, or a mesh that is not made of its chips.
    """
    wanted = spec.accelerator
    if wanted.gpu is not None:
        hosts, per_host = wanted.gpu.nodes or 1, wanted.gpu.count or 1
    elif wanted.tpu is not None:
        hosts, per_host = _slice(wanted.tpu)
    else:
        hosts, per_host = 1, (wanted.cpu.devices if wanted.cpu else None) or 1
    chips = hosts * per_host
    if backend_of(spec) == "torch":
        return Layout(hosts, per_host, replicas=chips)
    data, model = mesh(spec.mesh or MeshSpec(), chips, rows(spec))
    return Layout(hosts, per_host, replicas=data, mesh=(data, model))


def layouts(spec: FineTuneSpec) -> list[Layout]:
    """The layouts that a planner may choose among: as written, else the usual mesh, then more and more along model.

    Every group along data has whole rows of a step, and whole micro-batches where their size is written.

    Raises:
        ValueError: as `layout`.
    """
    usual = layout(spec)
    if usual.mesh is None or (spec.mesh is not None and (spec.mesh.data or spec.mesh.model)):
        return [usual]
    micro = (spec.training.micro_batch_size if spec.training else None) or 1
    sizes = (usual.chips // along for along in range(usual.mesh[1] + 1, usual.chips + 1) if usual.chips % along == 0)
    further = [data for data in sizes if rows(spec) % data == 0 and rows(spec) // data % micro == 0]
    return [usual, *(replace(usual, replicas=data, mesh=(data, usual.chips // data)) for data in further)]


def rows(spec: FineTuneSpec) -> int:
    """training.globalBatchSize, or its default."""
    written = spec.training.global_batch_size if spec.training else None
    return written or int(TRAINING["global_batch_size"])


def mesh(wanted: MeshSpec, chips: int, rows: int) -> tuple[int, int]:
    """Devices along data and along model.

    Where neither is written, data is the largest number that divides both the chips and the rows of a step: every
    group has whole rows, and as little of the model is divided as possible.

    Raises:
        ValueError: the chips cannot be arranged like this.
    """
    data, model = wanted.data, wanted.model
    if data is None and model is None:
        data = math.gcd(chips, rows)
    if data is None:
        data = chips // (model or 1)
    model = chips // data if model is None and data else model
    if model is None or data * model != chips:
        raise ValueError(f"data {data} x model {model} is not {chips}")
    return data, model


def _slice(tpu: TpuSpec) -> tuple[int, int]:
    """Hosts of a slice, and chips of each."""
    found = accelerators.tpu(tpu.type)
    if found is None:
        raise ValueError(f"{tpu.type} is no TPU type")
    hosts = found.hosts(tpu.topology, tpu.chips_per_node)
    return hosts, accelerators.topology_chips(tpu.topology) // hosts
