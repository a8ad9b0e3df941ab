"""Ephemeral storage of pods, and the boot disks of nodes that have it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import catalog, defaults, fit, scratch
from gemmatune_api.accelerators import GIB, allocatable_ephemeral_storage
from gemmatune_api.spec import FineTuneSpec

SIZES = st.integers(min_value=0, max_value=2000 * GIB)


@given(SIZES)
def test_a_pod_asks_for_more_than_the_estimate_and_keeps_room_for_tmp_and_log(needed: int) -> None:
    size = scratch.pod_bytes(needed)
    assert size % GIB == 0
    assert scratch.cache_bytes(size) >= max(needed * 1.2, 8 * GIB)
    assert scratch.cache_bytes(size) + scratch.TMP_BYTES + scratch.LOG_BYTES == size


@given(SIZES)
def test_the_smallest_boot_disk_that_suffices(size: int) -> None:
    disk = scratch.boot_disk_gb(size)
    assert disk >= 100
    assert disk % 50 == 0
    assert allocatable_ephemeral_storage(disk) >= size
    assert disk == 100 or allocatable_ephemeral_storage(disk - 50) < size


@pytest.mark.parametrize(
    ("model", "accelerator", "words"),
    [
        ("gemma-2-27b-it", {"gpu": {"type": "nvidia-h100-80gb"}}, "boot disk of 250 GB"),
        ("gemma-2-2b", {"gpu": {"type": "nvidia-l4"}}, ""),
        ("gemma-2-27b-it", {"cpu": {}}, ""),
    ],
)
def test_a_plan_says_when_gkes_usual_disk_does_not_suffice(model: str, accelerator: Any, words: str) -> None:
    spec = FineTuneSpec.model_validate(
        {
            "model": {"uri": f"hf://google/{model}"},
            "dataset": {"uri": "hf://my-org/rows", "text": {"template": "{text}"}},
            "output": {"uri": "gs://bucket/run"},
            "accelerator": accelerator,
        }
    )
    known = catalog.by_uri(spec.model.uri)
    assert known is not None
    told = [note for note in fit.plan(defaults.resolve(spec), known).notes if "boot disk" in note]
    assert len(told) == bool(words)
    assert all(words in note for note in told)
