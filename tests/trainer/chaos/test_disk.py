"""A scratch disk that is full: exit 13 with the remedy, and nothing is vouched for that is not there."""

from __future__ import annotations

from gemmatune_api.names import ExitCode, Reason
from tests.trainer.chaos.arena import Arena, began

DISK_BYTES = 256 * 1024
"""Room for the rows, and for less than a checkpoint."""


def test_a_full_disk(arena: Arena) -> None:
    run = arena.run()
    first = arena.start(run, 1, disk=DISK_BYTES)
    assert first.wait() == ExitCode.DISK_FULL, first.log()
    assert first.message.reason == Reason.DISK_FULL
    assert first.message.remedy.startswith("Free space on the file system named")
    assert str(run.folder / "cache") in first.message.message, "the file system is named"
    assert arena.landed(run) == []
    assert began(arena.finish(run, 2)) == 0
