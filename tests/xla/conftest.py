"""What the tests of backend xla share: virtual devices, tiny models, and what watches a training."""

from __future__ import annotations

import os

from tests.xla.devices import virtual

os.environ.update({**virtual(4), **os.environ})

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.runconfig import RunConfig, RunMesh
from tests.trainer import conftest as trainer

tiny_model = trainer.tiny_model
DEVICES = int(os.environ["CPU_NUM_DEVICES"])
MESHES = {4: [(4, 1), (2, 2)], 8: [(8, 1), (4, 2)]}[DEVICES]


@pytest.fixture
def make_config(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., RunConfig]:
    """`make_config("3", kind="full")`: the configuration of a run of a tiny model on the virtual devices."""

    def make(generation: str = "3", mesh: tuple[int, int] = MESHES[0], **changes: Any) -> RunConfig:
        found = trainer.run_config(tiny_model(generation), tmp_path / "rows.jsonl", tmp_path / "out", **changes)
        return found.model_copy(update={"backend": "xla", "mesh": RunMesh(data=mesh[0], model=mesh[1])})

    return make
