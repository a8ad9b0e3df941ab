"""What the tests of backend xla share: virtual devices, tiny models, and what watches a training."""

from __future__ import annotations

import os

os.environ.setdefault("PJRT_DEVICE", "CPU")
os.environ.setdefault("CPU_NUM_DEVICES", "4")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests compile far more than they compute.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.runconfig import RunConfig, RunMesh
from tests.trainer import conftest as trainer

tiny_model = trainer.tiny_model
DEVICES = int(os.environ["CPU_NUM_DEVICES"])
MESHES = {4: [(4, 1), (2, 2)], 8: [(4, 2), (8, 1)]}[DEVICES]


@pytest.fixture
def make_config(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., RunConfig]:
    """`make_config("3", kind="full")`: the configuration of a run of a tiny model on the virtual devices."""

    def make(generation: str = "3", mesh: tuple[int, int] = MESHES[0], **changes: Any) -> RunConfig:
        found = trainer.run_config(tiny_model(generation), tmp_path / "rows.jsonl", tmp_path / "out", **changes)
        return found.model_copy(update={"backend": "xla", "mesh": RunMesh(data=mesh[0], model=mesh[1])})

    return make
