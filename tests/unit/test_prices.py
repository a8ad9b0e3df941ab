"""The price table: one number for every mode, or one for each."""

from __future__ import annotations

import pytest

from gemmatune_api import prices
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.placement import AcceleratorSpec, CpuSpec, GpuSpec, TpuSpec


def test_one_number_or_one_for_each_mode() -> None:
    table = prices.parse("nvidia-l4: 1\nnvidia-a100-80gb: {onDemand: 5, spot: 2.5}\n")
    assert table == {"nvidia-l4": 1.0, "nvidia-a100-80gb": {"onDemand": 5.0, "spot": 2.5}}
    assert prices.parse("") == {}


@pytest.mark.parametrize(
    ("mode", "expected"), [(None, 5.0), ("onDemand", 5.0), ("spot", 2.5), ("flexStart", 5.0), ("reservation", 5.0)]
)
def test_a_mode_without_a_price_costs_what_on_demand_does(mode: str | None, expected: float) -> None:
    table = {"a": 1.0, "b": {"onDemand": 5.0, "spot": 2.5}}
    assert prices.per_hour(table, "b", mode) == expected
    assert prices.per_hour(table, "a", mode) == 1.0
    assert prices.per_hour(table, "c", mode) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: {spot: 1}", "a: must have a price for onDemand"),
        ("a: {onDemand: 1, Spot: 1}", "a.Spot: must be one of onDemand, spot, flexStart, reservation"),
        ("a: {onDemand: cheap}", 'a.onDemand: must be a price per hour (found "cheap")'),
        ("a: {onDemand: 1, spot: -1}", "a.spot: must be a price per hour (found -1)"),
        ("a: null", "a: must be a price per hour"),
        ("a: [1]", "a: must be a price per hour (found [1])"),
    ],
)
def test_what_is_no_price(text: str, problem: str) -> None:
    with pytest.raises(InvalidResourceError, match=r"price|mode|onDemand") as caught:
        prices.parse(text)
    assert problem in str(caught.value)
    assert "nvidia-l4: 0.75" in str(caught.value) or caught.value.problems[0].remedy.startswith("Write lines")


def test_names_in_the_table() -> None:
    assert prices.type_of(AcceleratorSpec(gpu=GpuSpec(type="nvidia-l4"))) == "nvidia-l4"
    tpu = TpuSpec(type="tpu-v6e-slice", topology="2x4")
    assert prices.type_of(AcceleratorSpec(tpu=tpu)) == "tpu-v6e-slice"
    assert prices.type_of(AcceleratorSpec(cpu=CpuSpec())) == "cpu"


def test_virtual_devices_are_no_nodes() -> None:
    """The price of `cpu` is that of a node, whatever it pretends to have; GPUs and chips are paid for one by one."""
    assert prices.units(AcceleratorSpec(cpu=CpuSpec(devices=8)), 1, 8) == 1
    assert prices.units(AcceleratorSpec(gpu=GpuSpec(type="nvidia-l4", count=4)), 2, 8) == 8
    assert prices.units(AcceleratorSpec(tpu=TpuSpec(type="tpu-v6e-slice", topology="2x4")), 2, 8) == 8
