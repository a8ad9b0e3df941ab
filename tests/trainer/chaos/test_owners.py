"""Two who want one prefix: resources at once, attempts at once, and attempts on lost nodes that come back."""

from __future__ import annotations

import re
import signal
import threading
import time

import pytest

from gemmatune_api.names import ExitCode
from gemmatune_trainer.progress import LOOK_SECONDS
from tests.support.soak import only_in_soak
from tests.support.wait import wait_for
from tests.trainer.chaos.arena import STEPS, Arena, Run, folder_of, wait_for_step


def test_two_owners_at_once(arena: Arena) -> None:
    """Another resource, and a second process of the same attempt: both are refused, the first is not disturbed."""
    run = arena.run()
    first = arena.start(run, 1)
    wait_for_step(first, 1)
    identity = run.config.run.model_copy(update={"uid": "uid-2", "name": "other"})
    other = Run(run.config.model_copy(update={"run": identity}), run.bucket, run.folder / "other")
    refused = arena.host.start("prepare", other.config, other.folder, arena.env(other))
    twin = arena.start(run, 1, name="twin")
    assert refused.wait() == ExitCode.OUTPUT_IN_USE, refused.log()
    assert "still there" in refused.message.message
    assert twin.wait() == ExitCode.INTERRUPTED, twin.log()
    assert "another process runs or ran as attempt 1" in twin.message.message
    assert first.wait() == ExitCode.DONE, first.log()
    arena.assert_undisturbed(run)


def test_a_zombie_stops_within_seconds_of_its_return(arena: Arena) -> None:
    """It looks at the fence before it writes the status: long before its next checkpoint, and without writing."""
    run = arena.run(every_steps=100_000, max_steps=100_000, eval_uri=None, best=False)
    zombie = arena.start(run, 1)
    wait_for_step(zombie, 3)
    zombie.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    heir = arena.start(run, 2)
    wait_for_step(heir, 3)
    wait_for(lambda: time.monotonic() - stopped > LOOK_SECONDS, "the time between two looks")
    zombie.signal(signal.SIGCONT)
    status = (zombie.folder / "status.json").read_text()
    assert zombie.wait(120) == ExitCode.INTERRUPTED, zombie.log()
    assert "attempt 2 has taken over from attempt 1" in zombie.message.message
    assert (zombie.folder / "status.json").read_text() == status
    assert arena.landed(run) == []
    heir.signal(signal.SIGKILL)


@pytest.mark.parametrize("file", ["manifest.json", pytest.param("optimizer.pt", marks=only_in_soak)])
def test_a_zombie_amid_an_upload(arena: Arena, file: str) -> None:
    """A lost node comes back after its successor has finished: its request, sent long ago, arrives then."""
    run = arena.run()
    held = threading.Event()
    fault = arena.proxy.fault("POST", folder_of(2) + re.escape(file), before=lambda: held.wait(300) and None)
    zombie = arena.start(run, 1)
    wait_for(lambda: fault.met, "the upload", seconds=240, detail=zombie.log)
    zombie.signal(signal.SIGSTOP)
    arena.finish(run, 2)
    held.set()
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == ExitCode.INTERRUPTED, zombie.log()
    assert "attempt 2 has taken over" in zombie.message.message
    arena.assert_undisturbed(run)
    if file != "manifest.json":  # a manifest that was on its way vouches for files that have all arrived
        assert arena.landed(run) == [STEPS]
