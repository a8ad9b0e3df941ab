"""The planner against the trainer itself: peak resident size of real runs of the Gemma 3 270M on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.memory import SETTINGS, Setting, measure

BELOW, ABOVE = -0.10, 0.30
"""How far an estimate may lie below and above the measured peak."""


@pytest.fixture(scope="module")
def model() -> Path:
    """The demo's model, converted once into the cache."""
    local = pytest.importorskip("gemmatune_cli.local.model")
    folder: Path = local.gemma_3_270m(print)
    return folder


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_estimate_is_near_the_measured_peak(setting: Setting, model: Path) -> None:
    found = measure(setting, model)
    assert BELOW <= found.error <= ABOVE, (
        f"{setting}: {found.plan.total / 2**20:.0f} MiB planned, {found.peak / 2**20:.0f} MiB measured"
    )


def test_settings_vary_what_matters() -> None:
    """Two lengths, two batches, both methods."""
    for values in zip(*((item.length, item.rows, item.method) for item in SETTINGS), strict=True):
        assert len(set(values)) == 2
    assert len(SETTINGS) >= 6
