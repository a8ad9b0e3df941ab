"""What the chaos suite shares: one host of trainers, one proxy, one undisturbed run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fakegcs import FakeGcs
from tests.support.faultygcs import FaultyGcs
from tests.support.trainerhost import TrainerHost
from tests.trainer.chaos.arena import Arena


@pytest.fixture(scope="package")
def shared_arena(
    trainer_host: TrainerHost,
    fake_gcs: FakeGcs,
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Arena]:
    with FaultyGcs(fake_gcs.endpoint) as proxy:
        yield Arena(trainer_host, fake_gcs, proxy, tiny_model("3"), tmp_path_factory.mktemp("chaos"))


@pytest.fixture
def arena(shared_arena: Arena) -> Iterator[Arena]:
    """Where trainers are disturbed; no fault is left over from another test."""
    shared_arena.proxy.mend()
    yield shared_arena
    shared_arena.proxy.mend()
