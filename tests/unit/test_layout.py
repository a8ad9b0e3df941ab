"""How accelerators are laid out: pods, devices and meshes of every shape."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gemmatune_api import accelerators
from gemmatune_api.layout import Layout, layout, mesh
from gemmatune_api.placement import MeshSpec
from gemmatune_api.spec import FineTuneSpec

Object = dict[str, Any]

SIDES = st.integers(min_value=1, max_value=40)
CHIPS = st.sampled_from([2**power for power in range(12)])


def spec(accelerator: Object, **blocks: Any) -> FineTuneSpec:
    return FineTuneSpec.model_validate(
        {
            "model": {"uri": "hf://google/gemma-2-2b"},
            "dataset": {"uri": "hf://my-org/rows", "text": {"template": "{text}"}},
            "output": {"uri": "gs://bucket/run"},
            "accelerator": accelerator,
            **blocks,
        }
    )


@pytest.mark.parametrize(
    ("accelerator", "blocks", "expected"),
    [
        ({"gpu": {"type": "nvidia-l4"}}, {}, Layout(1, 1, replicas=1)),
        ({"gpu": {"type": "nvidia-l4", "count": 4}}, {}, Layout(1, 4, replicas=4)),
        ({"gpu": {"type": "nvidia-h100-80gb", "count": 8, "nodes": 2}}, {}, Layout(2, 8, replicas=16)),
        ({"cpu": {}}, {}, Layout(1, 1, replicas=1)),
        ({"cpu": {"devices": 8}}, {"backend": "keras"}, Layout(1, 8, replicas=8, mesh=(8, 1))),
        (
            {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "4x4"}},
            {"backend": "keras", "mesh": {"data": 2, "model": 8}},
            Layout(4, 4, replicas=2, mesh=(2, 8)),
        ),
        (
            {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "16x16"}},
            {"training": {"globalBatchSize": 64}},
            Layout(64, 4, replicas=64, mesh=(64, 4)),
        ),
        ({"tpu": {"type": "tpu7x", "topology": "1x1x1"}}, {}, Layout(1, 1, replicas=1, mesh=(1, 1))),
    ],
)
def test_layouts(accelerator: Object, blocks: Object, expected: Layout) -> None:
    assert layout(spec(accelerator, **blocks)) == expected


def test_chips_are_those_of_all_hosts() -> None:
    assert Layout(hosts=4, per_host=8, replicas=32).chips == 32


@pytest.mark.parametrize("tpu", accelerators.tpus(), ids=lambda tpu: tpu.type)
def test_every_topology_of_the_tables(tpu: accelerators.TpuType) -> None:
    for topology in tpu.topologies:
        for size in tpu.chips_per_node(topology):
            found = layout(spec({"tpu": {"type": tpu.type, "topology": topology, "chipsPerNode": size}}))
            assert (found.per_host, found.chips) == (size, accelerators.topology_chips(topology))
            assert tpu.machine(found.per_host) is not None
            assert found.chips <= tpu.most_chips


@pytest.mark.parametrize("label", ["tpu-v4-podslice", "tpu-v5p-slice", "tpu7x"])
@given(sides=st.tuples(SIDES, SIDES, SIDES))
def test_three_dimensions_grow_by_fours_in_order(label: str, sides: tuple[int, int, int]) -> None:
    tpu = accelerators.tpu(label)
    assert tpu is not None
    topology = "x".join(map(str, sides))
    assume(topology not in tpu.topologies)
    possible = all(side % 4 == 0 for side in sides) and list(sides) == sorted(sides)
    assert tpu.allows(topology) == (possible and math.prod(sides) <= tpu.most_chips)
    if tpu.allows(topology):
        assert tpu.hosts(topology) * 4 == math.prod(sides)
    else:
        with pytest.raises(ValueError, match="has no topology"):
            tpu.hosts(topology)


@given(sides=st.tuples(SIDES, SIDES))
def test_two_dimensions_are_the_listed_ones(sides: tuple[int, int]) -> None:
    for label in ("tpu-v5-lite-podslice", "tpu-v6e-slice"):
        tpu = accelerators.tpu(label)
        assert tpu is not None
        assert tpu.allows("x".join(map(str, sides))) == ("x".join(map(str, sides)) in tpu.topologies)


@pytest.mark.parametrize("topology", ["0x4", "4", "", "4x4x", "axb", "-4x4", "4x4x4x4", "04x4x4", "4X4"])
def test_odd_texts_are_no_topology(topology: str) -> None:
    assert [tpu.type for tpu in accelerators.tpus() if tpu.allows(topology)] == []


@given(chips=CHIPS, rows=st.integers(min_value=1, max_value=512))
def test_the_planners_mesh_uses_all_chips_and_whole_rows(chips: int, rows: int) -> None:
    data, model = mesh(MeshSpec(), chips, rows)
    assert data * model == chips
    assert rows % data == 0
    larger = [size for size in range(data + 1, chips + 1) if chips % size == 0 and rows % size == 0]
    assert larger == []


@given(size=CHIPS, other=CHIPS)
def test_one_side_of_a_mesh_gives_the_other(size: int, other: int) -> None:
    chips = size * other
    assert mesh(MeshSpec(data=size), chips, 16) == (size, chips // size)
    assert mesh(MeshSpec(model=size), chips, 16) == (chips // size, size)


@pytest.mark.parametrize("wanted", [{"data": 3}, {"model": 3}, {"data": 2, "model": 2}, {"data": 16}, {"model": 16}])
def test_a_mesh_of_other_chips_is_none(wanted: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not 8"):
        mesh(MeshSpec(**wanted), 8, 16)


@pytest.mark.parametrize(
    "tpu", [{"type": "v5e", "topology": "2x4"}, {"type": "tpu-v5-lite-podslice", "topology": "2x4"}]
)
def test_a_tpu_that_is_not_clear_has_no_layout(tpu: Object) -> None:
    with pytest.raises(ValueError, match=r"is no TPU type|chips per node"):
        layout(spec({"tpu": tpu}))
