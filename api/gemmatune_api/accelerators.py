"""Accelerators of Google Kubernetes Engine: label values, machines, memory, topologies, and what a node leaves."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

GIB = 1024**3
MIB = 1024**2

VISIBLE_SHARE: Mapping[str, float] = {"gddr": 0.91, "hbm": 0.98}
"""GiB that torch sees per nominal GB where it was not measured: GDDR boards keep a part for error correction."""
DEFAULT_BOOT_DISK_GB = 100
"""Boot disk of a GKE node pool that names no size."""
EVICTION_MEMORY = 100 * MIB
"""Memory below which the kubelet evicts pods."""

_MEMORY_RESERVED = ((4, 0.25), (4, 0.20), (8, 0.10), (112, 0.06), (math.inf, 0.02))
"""GKE's reservation: (GiB, share) of memory from the first byte on."""
_CPU_RESERVED = ((1, 0.06), (1, 0.01), (2, 0.005), (math.inf, 0.0025))
"""GKE's reservation: (cores, share) of CPU from the first core on."""


USABLE = 0.85
"""Share of what a node can give that a pod asks for: the system's own pods need the rest."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine type with its accelerators."""

    name: str
    accelerators: int
    vcpu: int
    memory_gib: int

    @property
    def allocatable_memory(self) -> int:
        """Bytes of memory that pods may request on such a node."""
        return allocatable_memory(self.memory_gib * GIB)

    @property
    def pod_memory(self) -> int:
        """Bytes of memory that a run's pod asks for, in whole gibibytes: it has no use beside the accelerators."""
        return int(self.allocatable_memory * USABLE) // GIB * GIB

    @property
    def allocatable_cpu(self) -> float:
        """Cores that pods may request on such a node."""
        return allocatable_cpu(self.vcpu)


@dataclass(frozen=True, kw_only=True)
class GpuType:
    """A GPU by the value of the node label cloud.google.com/gke-accelerator."""

    type: str
    title: str
    arch: str
    compute_capability: tuple[int, int]
    memory: int
    """Nominal memory in GB."""
    memory_kind: Literal["gddr", "hbm"] = "hbm"
    visible: float | None = None
    """GiB that torch sees, where it was measured."""
    bf16: bool = True
    """Whether it computes in bfloat16; without it runs are planned with fp32 activations."""
    cpu_arch: Literal["amd64", "arm64"] = "amd64"
    aliases: tuple[str, ...] = ()
    machines: tuple[Machine, ...]

    @property
    def capacity(self) -> int:
        """Bytes that torch sees on one GPU."""
        gib = self.visible if self.visible is not None else self.memory * VISIBLE_SHARE[self.memory_kind]
        return int(gib * GIB)


@dataclass(frozen=True, kw_only=True)
class TpuType:
    """A TPU generation by the value of the node label cloud.google.com/gke-tpu-accelerator."""

    type: str
    generation: str
    aliases: tuple[str, ...]
    hbm: int
    """Nominal memory of one chip in GB."""
    dimensions: Literal[2, 3]
    topologies: tuple[str, ...]
    """All topologies in two dimensions; in three the smallest, which grow to AxBxC of multiples of 4, A <= B <= C."""
    most_chips: int
    """Chips of the largest slice."""
    machines: tuple[Machine, ...]

    @property
    def capacity(self) -> int:
        """Bytes of one chip's memory."""
        return self.hbm * 1000**3

    def allows(self, topology: str) -> bool:
        """Whether GKE has slices of this topology."""
        if topology in self.topologies:
            return True
        try:
            sides = topology_sides(topology)
        except ValueError:
            return False
        if topology != "x".join(map(str, sides)):
            return False  # 04x4x4: no node's label says so
        grown = self.dimensions == 3 and len(sides) == 3 and all(side % 4 == 0 for side in sides)
        return grown and list(sides) == sorted(sides) and math.prod(sides) <= self.most_chips

    def chips_per_node(self, topology: str) -> tuple[int, ...]:
        """Chips per node that are possible for a topology, the single host first; empty: not a topology of this type.

        One chip runs on a one-chip machine; more chips on any machine that divides them evenly.
        """
        if not self.allows(topology):
            return ()
        chips = topology_chips(topology)
        sizes = {machine.accelerators for machine in self.machines}
        if chips == 1:
            return (1,) if 1 in sizes else ()
        single = [size for size in sizes if size == chips]
        several = [size for size in sizes if 1 < size < chips and chips % size == 0 and size == 4]
        return tuple(sorted(single) + sorted(several, reverse=True))

    @property
    def of_one_host(self) -> tuple[tuple[str, int], ...]:
        """Topologies that a single machine has, with their chips."""
        chips = ((topology, topology_chips(topology)) for topology in self.topologies)
        return tuple((topology, size) for topology, size in chips if size in self.chips_per_node(topology))

    def hosts(self, topology: str, chips_per_node: int | None = None) -> int:
        """Nodes of a slice.

        Raises:
            ValueError: no such topology, chips per node that it cannot have, or several choices and none made.
        """
        choices = self.chips_per_node(topology)
        if not choices:
            raise ValueError(f"{self.type} has no topology {topology}")
        if chips_per_node is None and len(choices) > 1:
            raise ValueError(f"{topology} of {self.type} can have {' or '.join(map(str, choices))} chips per node")
        size = choices[0] if chips_per_node is None else chips_per_node
        if size not in choices:
            raise ValueError(
                f"{topology} of {self.type} has {' or '.join(map(str, choices))} chips per node, not {size}"
            )
        return topology_chips(topology) // size

    def machine(self, chips_per_node: int) -> Machine | None:
        """The machine type with that many chips."""
        return next((machine for machine in self.machines if machine.accelerators == chips_per_node), None)


def gpu(label: str) -> GpuType | None:
    """The GPU type of an exact label value; None where GKE has none of that name (see `near`)."""
    return _tables()[0].get(label)


def gpus() -> tuple[GpuType, ...]:
    """All GPU types, from the smallest nominal memory to the largest; of equals the older generation first."""
    return tuple(sorted(_tables()[0].values(), key=lambda item: item.memory))


def tpu(label: str) -> TpuType | None:
    """The TPU type of an exact label value; None where GKE has none of that name (see `near`)."""
    return _tables()[1].get(label)


def tpus() -> tuple[TpuType, ...]:
    """All TPU types, from the oldest generation to the newest."""
    return tuple(_tables()[1].values())


def possible_counts(label: str) -> tuple[int, ...]:
    """GPUs per node that machines of this type have, ascending; empty for an unknown type."""
    found = gpu(label)
    return tuple(sorted({machine.accelerators for machine in found.machines})) if found else ()


def machine_for(label: str, count: int, host_memory: int = 0) -> Machine | None:
    """The smallest machine with `count` GPUs of a type whose pod gets `host_memory` bytes.

    Where none leaves so much it is the largest; None where no machine has that many GPUs.
    """
    found = gpu(label)
    if found is None:
        return None
    candidates = [machine for machine in found.machines if machine.accelerators == count]
    candidates.sort(key=lambda machine: (machine.memory_gib, machine.vcpu))
    enough = [machine for machine in candidates if machine.pod_memory >= host_memory]
    return next(iter(enough or candidates[-1:]), None)


def near(name: str) -> list[str]:
    """Label values that somebody who wrote `name` may have meant, at most three: `v5e` gives tpu-v5-lite-podslice."""
    wanted = name.strip().lower()
    spellings = _spellings()
    exact = [label for text, label in spellings if text == wanted]
    part = [label for text, label in spellings if len(wanted) > 1 and (wanted in text or text in wanted)]
    close = difflib.get_close_matches(wanted, [text for text, _ in spellings], n=3, cutoff=0.6)
    similar = [label for text in close for spelling, label in spellings if spelling == text]
    return list(dict.fromkeys(exact + part or similar))[:3]


def topology_sides(topology: str) -> tuple[int, ...]:
    """Sides of a topology such as `2x4` or `2x2x1`.

    Raises:
        ValueError: the text is no topology.
    """
    parts = topology.split("x")
    if len(parts) not in (2, 3) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"{topology!r} is no topology: write text such as 2x4 or 2x2x1")
    return tuple(int(part) for part in parts)


def topology_chips(topology: str) -> int:
    """Chips of a topology: the product of its sides."""
    return math.prod(topology_sides(topology))


def allocatable_memory(capacity: int) -> int:
    """Bytes of memory that pods may request on a GKE node with `capacity` bytes."""
    return int(capacity - _reserved(capacity / GIB, _MEMORY_RESERVED) * GIB - EVICTION_MEMORY)


def allocatable_cpu(cores: float) -> float:
    """Cores that pods may request on a GKE node."""
    return cores - _reserved(cores, _CPU_RESERVED)


def allocatable_ephemeral_storage(boot_disk_gb: int = DEFAULT_BOOT_DISK_GB) -> int:
    """Bytes of ephemeral storage that pods may request on a GKE node with such a boot disk.

    GKE keeps 10% for eviction and the least of half the disk, 6 GiB + 35% of it, and 100 GiB for the system.
    """
    disk = boot_disk_gb * GIB
    return int(disk * 0.9 - min(disk * 0.5, 6 * GIB + disk * 0.35, 100 * GIB))


def _reserved(amount: float, bands: Iterable[tuple[float, float]]) -> float:
    total = 0.0
    for width, share in bands:
        part = min(amount, width)
        total += part * share
        amount -= part
        if amount <= 0:
            break
    return total


@cache
def _tables() -> tuple[Mapping[str, GpuType], Mapping[str, TpuType]]:
    """accelerators.yaml, read once."""
    data = yaml.safe_load(resources.files("gemmatune_api").joinpath("accelerators.yaml").read_text(encoding="utf-8"))
    gpu_type, tpu_type = TypeAdapter(GpuType), TypeAdapter(TpuType)
    gpu_table = {label: gpu_type.validate_python(_entry(label, entry)) for label, entry in data["gpus"].items()}
    tpu_table = {label: tpu_type.validate_python(_entry(label, entry)) for label, entry in data["tpus"].items()}
    return gpu_table, tpu_table


def _entry(label: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    machines = [Machine(*machine) for machine in entry["machines"]]
    return {**entry, "type": label, "machines": machines}


@cache
def _spellings() -> tuple[tuple[str, str], ...]:
    """(lower-case spelling, label value) of every type: label, title, alias and generation."""
    found: list[tuple[str, str]] = []
    for item in _tables()[0].values():
        names = (item.type, item.type.removeprefix("nvidia-").removeprefix("tesla-"), item.title, *item.aliases)
        found += [(name.lower(), item.type) for name in names]
    for chip in _tables()[1].values():
        found += [(name.lower(), chip.type) for name in (chip.type, chip.generation, *chip.aliases)]
    return tuple(dict.fromkeys(found))
