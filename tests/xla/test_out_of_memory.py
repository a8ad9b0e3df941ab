"""What backend xla tells of its passes where the chips' memory does not suffice for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.fixed import FixedBatches
from gemmatune_trainer.errors import AcceleratorOutOfMemory
from tests.support.watcher import Watcher
from tests.trainer.conftest import ListedRows
from tests.xla.conftest import DEVICES
from tests.xla.test_backend import LENGTHS, loaded


def exhausted(*arguments: Any) -> None:
    """What XLA says of a program that is too large; the CPU's devices have no memory of their own to run out of."""
    raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 15G")


def test_it_tells_the_sequences_that_a_pass_had(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 rows fill four sequences of 128 tokens: two in each of two groups, whether 8, 4 or 2 are allowed."""
    rows = ListedRows(LENGTHS)

    def config(micro: int) -> RunConfig:
        return make_config(mesh=(2, DEVICES // 2), global_batch_size=len(LENGTHS), micro_batch_size=micro)

    def each(micro: int) -> int:
        return FixedBatches(config(micro), rows, len(LENGTHS), 1, 2, 0).sequences_each

    filled = each(8)
    assert [each(4), each(2), each(1)] == [filled, filled, 1] == [2, 2, 1]
    backend = loaded(config(8))
    monkeypatch.setattr(backend, "_loss", exhausted)
    with pytest.raises(AcceleratorOutOfMemory, match="20G of 15G") as caught:
        backend.train(rows, len(LENGTHS), 1, None, Watcher())
    assert caught.value.sequences == filled
    with pytest.raises(AcceleratorOutOfMemory) as caught:
        backend.evaluate(rows, len(LENGTHS), lambda: None)
    assert caught.value.sequences == filled
