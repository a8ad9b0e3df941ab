"""The planner against the trainer itself: peak resident size of real runs of the Gemma 3 270M on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.memory import ABOVE, BELOW, SETTINGS, Setting, measure

QUICK = tuple(setting for setting in SETTINGS if setting.rows * setting.length == 128)
"""The small run of each method; `make bench-trainer` runs all of them and records them."""


@pytest.fixture(scope="module")
def model() -> Path:
    """The demo's model, converted once into the cache."""
    local = pytest.importorskip("gemmatune_cli.local.model")
    folder: Path = local.gemma_3_270m(print)
    return folder


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("setting", QUICK, ids=str)
def test_estimate_is_near_the_measured_peak(setting: Setting, model: Path) -> None:
    found = measure(setting, model)
    assert BELOW <= found.error <= ABOVE, (
        f"{setting}: {found.plan.total / 2**20:.0f} MiB planned, {found.peak / 2**20:.0f} MiB measured"
    )
