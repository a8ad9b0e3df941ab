"""Memory of backend keras: what it tells where a chip's does not suffice, and what hosts hold of a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemmatune_trainer.backends import keras_state
from gemmatune_trainer.backends.keras_batches import Batches
from gemmatune_trainer.errors import AcceleratorOutOfMemory
from gemmatune_trainer.launcher import free_port
from tests.keras.conftest import MakeConfig, device_environment
from tests.keras.onehost import LENGTHS, Saves
from tests.keras.test_keras_parity import loaded
from tests.trainer.conftest import ListedRows


def exhausted(*arguments: Any) -> None:
    """What XLA says of a program that is too large; the CPU's devices have no memory of their own to run out of."""
    raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 15G")


def test_it_tells_the_sequences_that_a_pass_had(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows fill five sequences of 128 tokens: three in each of two groups, however many a micro-batch may have."""
    rows = ListedRows(LENGTHS)

    def each(micro: int) -> int:
        config = make_config(mesh=(2, 4), global_batch_size=len(LENGTHS), micro_batch_size=micro)
        return Batches(config, rows, LENGTHS, 1, 2, 0).sequences_each

    filled = each(8)
    assert [each(4), each(2), each(1)] == [filled, 2, 1]
    assert filled == 3
    backend = loaded(make_config(mesh=(2, 4), global_batch_size=len(LENGTHS), micro_batch_size=8))
    monkeypatch.setattr(backend.steps, "accumulate", exhausted)
    with pytest.raises(AcceleratorOutOfMemory, match="20G of 15G") as caught:
        backend.train(rows, len(LENGTHS), 1, None, Saves(lambda: None))
    assert caught.value.sequences == filled
    monkeypatch.setattr(backend.steps, "loss", exhausted)
    with pytest.raises(AcceleratorOutOfMemory) as caught:
        backend.evaluate(rows, len(LENGTHS), lambda: None)
    assert caught.value.sequences == 1, "rows of an evaluation pass one by one"


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
        assert list(other) == [], "it has nothing to write"
    weights = keras_state.read_arrays(tmp_path / "0")
    assert weights.keys() == keras_state.read_arrays(tmp_path / "0" / "weights").keys()
    assert not (tmp_path / "1" / "weights").exists()
