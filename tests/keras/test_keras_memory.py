"""Memory of backend keras: what it tells where a chip's does not suffice, and what hosts hold of a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gemmatune_trainer.backends import keras_state
from gemmatune_trainer.launcher import free_port
from tests.keras.conftest import MakeConfig, device_environment


def test_only_rank_0_holds_a_checkpoint(make_config: MakeConfig, tmp_path: Path) -> None:
    """Weights and moments are divided between two hosts: both help to gather them, one keeps them."""
    config = make_config(mesh=(1, 2), kind="full", learning_rate=1e-3, global_batch_size=4, micro_batch_size=4)
    meet = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.keras.onehost", config.model_dump_json(by_alias=True), str(tmp_path / rank)],
            env={**os.environ, **device_environment(1), **meet, "RANK": rank},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(180) for process in processes] == [0, 0]
    for name in (keras_state.WEIGHTS, keras_state.OPTIMIZER):
        kept, other = (keras_state.read_arrays(tmp_path / rank, name) for rank in ("0", "1"))
        assert len(kept) > 10
        assert other == {}, "it has nothing to write"
    weights = keras_state.read_arrays(tmp_path / "0")
    assert weights.keys() == keras_state.read_arrays(tmp_path / "0" / "weights").keys()
    assert not (tmp_path / "1" / "weights").exists()
