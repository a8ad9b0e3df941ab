"""The accelerator tables: look-ups, machines, what a node leaves to pods, and the arithmetic of TPU topologies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import accelerators
from gemmatune_api.accelerators import GIB


def test_every_gpu_of_the_tables() -> None:
    memory = {gpu.type: gpu.memory for gpu in accelerators.gpus()}
    assert memory == {
        "nvidia-tesla-t4": 16,
        "nvidia-l4": 24,
        "nvidia-tesla-a100": 40,
        "nvidia-a100-80gb": 80,
        "nvidia-h100-80gb": 80,
        "nvidia-h100-mega-80gb": 80,
        "nvidia-rtx-pro-6000": 96,
        "nvidia-h200-141gb": 141,
        "nvidia-b200": 180,
        "nvidia-gb200": 186,
    }
    assert list(memory.values()) == sorted(memory.values())
    assert [gpu.type for gpu in accelerators.gpus() if not gpu.bf16] == ["nvidia-tesla-t4"]
    assert [gpu.type for gpu in accelerators.gpus() if gpu.cpu_arch == "arm64"] == ["nvidia-gb200"]


@pytest.mark.parametrize(
    ("label", "gib"), [("nvidia-tesla-t4", 14.56), ("nvidia-tesla-a100", 39.5), ("nvidia-a100-80gb", 79.25)]
)
def test_measured_capacity_is_taken(label: str, gib: float) -> None:
    gpu = accelerators.gpu(label)
    assert gpu is not None
    assert gpu.capacity == int(gib * GIB)


def test_capacity_is_never_more_than_what_is_printed_on_the_card() -> None:
    assert all(0.9 * gpu.memory * 1e9 < gpu.capacity <= gpu.memory * GIB for gpu in accelerators.gpus())


@pytest.mark.parametrize(
    ("label", "count", "host_gib", "name"),
    [
        ("nvidia-l4", 1, 0, "g2-standard-4"),
        ("nvidia-l4", 1, 12, "g2-standard-8"),
        ("nvidia-l4", 1, 500, "g2-standard-32"),
        ("nvidia-l4", 2, 0, "g2-standard-24"),
        ("nvidia-tesla-a100", 16, 0, "a2-megagpu-16g"),
        ("nvidia-tesla-t4", 1, 0, "n1-standard-4"),
        ("nvidia-h200-141gb", 8, 0, "a3-ultragpu-8g"),
    ],
)
def test_smallest_machine_that_suffices(label: str, count: int, host_gib: int, name: str) -> None:
    machine = accelerators.machine_for(label, count, host_gib * GIB)
    assert machine is not None
    assert (machine.name, machine.accelerators) == (name, count)


@pytest.mark.parametrize(("label", "count"), [("nvidia-l4", 3), ("nvidia-h200-141gb", 1), ("nvidia-x", 1)])
def test_no_such_machine(label: str, count: int) -> None:
    assert accelerators.machine_for(label, count) is None


def test_possible_counts() -> None:
    assert accelerators.possible_counts("nvidia-l4") == (1, 2, 4, 8)
    assert accelerators.possible_counts("nvidia-tesla-t4") == (1, 2, 4)
    assert accelerators.possible_counts("nvidia-x") == ()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("v5e", "tpu-v5-lite-podslice"),
        ("tpu-v5e-slice", "tpu-v5-lite-podslice"),
        ("v6e", "tpu-v6e-slice"),
        ("L4", "nvidia-l4"),
        ("nvidia-t4", "nvidia-tesla-t4"),
        ("nvidia-a100-40gb", "nvidia-tesla-a100"),
        ("h100", "nvidia-h100-80gb"),
        ("nvidia-l40", "nvidia-l4"),
        ("nvidai-l4", "nvidia-l4"),
    ],
)
def test_near_finds_what_was_meant(name: str, first: str) -> None:
    found = accelerators.near(name)
    assert found[0] == first
    assert len(found) <= 3


def test_near_says_nothing_where_nothing_is_near() -> None:
    assert accelerators.near("quantum") == []


def test_labels_are_looked_up_exactly() -> None:
    assert accelerators.gpu("L4") is None
    assert accelerators.tpu("v5e") is None


@pytest.mark.parametrize(("gib", "reserved"), [(4, 1.0), (8, 1.8), (16, 2.6), (128, 9.32), (384, 9.32 + 256 * 0.02)])
def test_memory_that_gke_reserves(gib: int, reserved: float) -> None:
    left = accelerators.allocatable_memory(gib * GIB)
    assert left / GIB == pytest.approx(gib - reserved - 100 / 1024)


@pytest.mark.parametrize(("cores", "left"), [(1, 0.94), (2, 1.93), (4, 3.92), (12, 11.9)])
def test_cpu_that_gke_reserves(cores: int, left: float) -> None:
    assert accelerators.allocatable_cpu(cores) == pytest.approx(left)


def test_ephemeral_storage_that_gke_leaves() -> None:
    assert accelerators.allocatable_ephemeral_storage(100) / GIB == pytest.approx(49)
    assert accelerators.allocatable_ephemeral_storage(1000) / GIB == pytest.approx(800)


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_a_larger_machine_leaves_more(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert accelerators.allocatable_memory(small * GIB) <= accelerators.allocatable_memory(large * GIB)
    assert accelerators.allocatable_cpu(small) <= accelerators.allocatable_cpu(large)


@pytest.mark.parametrize(
    ("label", "topology", "chips_per_node"),
    [
        ("tpu-v5-lite-podslice", "1x1", (1,)),
        ("tpu-v5-lite-podslice", "2x4", (8, 4)),
        ("tpu-v5-lite-podslice", "16x16", (4,)),
        ("tpu-v6e-slice", "2x2", (4,)),
        ("tpu-v5p-slice", "2x2x1", (4,)),
        ("tpu-v5p-slice", "4x4x8", (4,)),
        ("tpu-v5p-slice", "2x4", ()),
        ("tpu-v5p-slice", "4x4x6", ()),
        ("tpu7x", "1x1x1", (1,)),
    ],
)
def test_chips_per_node(label: str, topology: str, chips_per_node: tuple[int, ...]) -> None:
    tpu = accelerators.tpu(label)
    assert tpu is not None
    assert tpu.chips_per_node(topology) == chips_per_node


def test_hosts_are_chips_divided_by_chips_per_node() -> None:
    for tpu in accelerators.tpus():
        for topology in tpu.topologies:
            for size in tpu.chips_per_node(topology):
                assert tpu.hosts(topology, size) * size == math.prod(int(side) for side in topology.split("x"))
                assert tpu.machine(size) is not None


def test_an_ambiguous_topology_asks() -> None:
    tpu = accelerators.tpu("tpu-v6e-slice")
    assert tpu is not None
    with pytest.raises(ValueError, match="8 or 4 chips per node"):
        tpu.hosts("2x4")
    with pytest.raises(ValueError, match="has no topology 3x3"):
        tpu.hosts("3x3")
    with pytest.raises(ValueError, match="not 8"):
        tpu.hosts("4x4", 8)


@pytest.mark.parametrize("text", ["", "2", "2x", "0x4", "2x2x2x2", "axb"])
def test_no_topology(text: str) -> None:
    with pytest.raises(ValueError, match="is no topology"):
        accelerators.topology_sides(text)
