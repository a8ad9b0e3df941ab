"""A scratch disk that is full: exit 13 with the remedy, and nothing is vouched for that is not there."""

from __future__ import annotations

import pytest

from gemmatune_api.names import ExitCode, Reason
from tests.trainer.chaos.arena import Arena, began

KIB = 1024


@pytest.mark.parametrize("room", [pytest.param(256, id="checkpoint"), pytest.param(48, id="best adapter")])
def test_a_full_disk(arena: Arena, room: int) -> None:
    """There is room for the rows, but not for a checkpoint, or not even for the best adapter."""
    run = arena.run()
    first = arena.start(run, 1, disk=room * KIB)
    assert first.wait() == ExitCode.DISK_FULL, first.log()
    assert first.message.reason == Reason.DISK_FULL
    assert first.message.remedy.startswith("Free space on the file system named")
    assert str(run.folder / "cache") in first.message.message, "the file system is named"
    assert arena.landed(run) == []
    assert began(arena.finish(run, 2)) == 0
