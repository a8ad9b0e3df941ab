"""The planner against measured runs, of others on GPUs and of our own trainers on a CPU.

Others: max_memory_reserved() of twelve runs of Unsloth's notebooks (2026-08-18). Their trainer checkpoints activations
and computes the logits of every position; the length is a cap, so each peak is a lower bound at that length. GPUs
without bf16 ran in fp16, which is as wide. Ours: bench/results/memory.json, the last `make bench-trainer`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from bench.memory import ABOVE, BELOW, RESULTS, SETTINGS, planned
from bench.memory import Setting as RunSetting
from gemmatune_api import catalog, memory, memory_devices
from gemmatune_api.accelerators import GIB
from gemmatune_api.memory import Setting


class Run(NamedTuple):
    """A measured run; memory in GiB."""

    model: str
    method: str
    rank: int
    batch: int
    length: int
    loaded: float
    peak: float


RUNS = [
    Run("gemma-2-2b", "qlora", 16, 2, 2048, 2.697, 7.684),
    Run("gemma-2-9b", "qlora", 16, 2, 2048, 6.576, 9.383),
    Run("codegemma-7b", "qlora", 16, 1, 4096, 5.967, 12.316),
    Run("gemma-3-270m", "lora", 128, 4, 2048, 0.832, 4.268),
    Run("functiongemma-270m", "lora", 128, 4, 4096, 0.832, 10.660),
    Run("gemma-3-4b", "qlora", 8, 2, 2048, 4.283, 13.561),
    Run("gemma-3-27b", "qlora", 8, 2, 2048, 19.074, 25.791),
    Run("gemma-4-e2b", "lora", 8, 1, 1024, 10.098, 10.836),
    Run("gemma-4-e4b", "qlora", 8, 1, 1024, 9.891, 10.715),
    Run("gemma-4-12b", "lora", 8, 1, 2048, 22.434, 24.850),
    Run("gemma-4-26b-a4b", "qlora", 8, 1, 8192, 46.416, 48.988),
    Run("gemma-4-31b", "qlora", 8, 1, 8192, 18.570, 21.430),
]


def setting(run: Run) -> Setting:
    """The run's own setting."""
    return Setting(
        method="qlora" if run.method == "qlora" else "lora",
        rows=run.batch,
        length=run.length,
        checkpointing=True,
        rank=run.rank,
        optimizer="adamw_bnb_8bit",
        all_logits=True,
    )


def model_of(run: Run) -> catalog.GemmaModel:
    model = catalog.by_name(run.model)
    assert model is not None
    return model


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_weights_are_within_a_tenth_of_what_was_loaded(run: Run) -> None:
    model, known = model_of(run), setting(run)
    weights = memory.base_weights(model, known) + memory.adapter_weights(model, known)
    loaded = weights + memory.loading_reserve(model, known)
    assert loaded / GIB == pytest.approx(run.loaded, rel=0.1)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_total_is_never_below_nine_tenths_of_the_peak(run: Run) -> None:
    estimate = memory.estimate(model_of(run), setting(run), 0)
    assert estimate.total / GIB >= 0.9 * run.peak


@pytest.mark.parametrize("run", [run for run in RUNS if run.method == "lora"], ids=lambda run: run.model)
def test_16_bit_weights_alone_come_near(run: Run) -> None:
    """Without the reserve of the allocator: two bytes a weight, where the embedding is not most of the model."""
    model = model_of(run)
    if model.embedding < model.parameters / 2:
        assert memory.base_weights(model, setting(run)) / GIB == pytest.approx(run.loaded, rel=0.06)


OURS: list[dict[str, Any]] = json.loads(RESULTS.read_text())["measurements"]


def own_setting(measured: dict[str, Any]) -> RunSetting:
    return RunSetting(measured["method"], measured["rows"], measured["length"], measured["checkpointing"])


@pytest.mark.parametrize("measured", OURS, ids=lambda measured: str(own_setting(measured)))
def test_estimates_are_near_the_peaks_of_our_trainer(measured: dict[str, Any]) -> None:
    error = planned(own_setting(measured)).total / measured["peak"] - 1
    assert BELOW <= error <= ABOVE


def test_our_runs_vary_what_matters() -> None:
    """Two lengths, two batches, both methods, with and without checkpointing; all that is measured was recorded."""
    assert [own_setting(measured) for measured in OURS] == list(SETTINGS)
    for values in zip(*((item.length, item.rows, item.method, item.checkpointing) for item in SETTINGS), strict=True):
        assert len(set(values)) == 2
    assert len(SETTINGS) >= 6


SMALL = {"hidden": 256, "layers": 6, "ffn": 1024, "heads": 4, "kv_heads": 1, "head_dim": 64}
VIRTUAL = [
    ("keras", 1, {}, 3590),
    ("keras", 2, {}, 8038),
    ("xla", 1, {}, 3936),
    ("xla", 1, SMALL, 2445),
    ("xla", 2, SMALL, 2527),
]
"""Backend, virtual devices along data, what differs from Gemma 3 270M, and the largest resident size of `train` in MiB:
LoRA in bf16, one row of 64 tokens a device, without checkpointing (that of xla on the 270M after its first step)."""


@pytest.mark.parametrize(("backend", "devices", "shape", "peak"), VIRTUAL)
def test_virtual_devices_take_what_is_planned(backend: str, devices: int, shape: dict[str, int], peak: int) -> None:
    model = catalog.by_name("gemma-3-270m")
    assert model is not None
    wanted = Setting(method="lora", rows=1, length=64, checkpointing=False, device="cpu")
    planned = memory_devices.estimate(backend, replace(model, **shape), wanted, (devices, 1), 0).total
    assert BELOW <= planned / (peak * 1024**2) - 1 <= ABOVE
