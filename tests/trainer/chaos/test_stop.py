"""SIGTERM wherever the trainer is: a checkpoint within 15 s, exit 30, and the next attempt ends as the undisturbed."""

from __future__ import annotations

import signal
import threading
import time

from gemmatune_api.names import ExitCode
from gemmatune_trainer.run import SAVE_SECONDS
from tests.support.soak import only_in_soak
from tests.support.trainerhost import TrainerProcess
from tests.support.wait import wait_for
from tests.trainer.chaos.arena import INTERVAL, STEPS, Arena, Sniper, began, folder_of, reached, wait_for_step


def stop(process: TrainerProcess) -> float:
    """Sends SIGTERM; how many seconds later the process has ended with exit code 30."""
    begun = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.wait() == ExitCode.INTERRUPTED, process.log()
    return time.monotonic() - begun


def test_while_an_upload_is_in_flight(arena: Arena) -> None:
    """The upload of an older step hangs: the new one goes beside it, and is what the next attempt begins with."""
    run = arena.run()
    held = threading.Event()
    hanging = arena.proxy.fault("POST", rf"{folder_of(2)}optimizer\.pt", before=lambda: held.wait(300) and None)
    first = arena.start(run, 1)
    wait_for(lambda: hanging.met, "the upload", seconds=240, detail=first.log)
    wait_for_step(first, 2 * INTERVAL + 1)
    seconds = stop(first)
    held.set()
    last = reached(first)
    assert f"the checkpoint of step {last} is saved" in first.message.message
    assert first.message.step == last > 2 * INTERVAL
    assert seconds < SAVE_SECONDS
    assert began(arena.finish(run, 2)) == last


def test_while_training_waits_for_an_upload_and_nothing_can_be_saved(arena: Arena) -> None:
    """The bucket refuses what is new: the last periodic checkpoint counts."""
    run = arena.run()
    held = threading.Event()
    hanging = arena.proxy.fault("POST", rf"{folder_of(2)}optimizer\.pt", before=lambda: held.wait(300) and None)
    arena.proxy.fault("POST", folder_of(3), code=403, times=1000)
    first = arena.start(run, 1)
    wait_for(lambda: hanging.met, "the upload", seconds=240, detail=first.log)
    wait_for_step(first, 3 * INTERVAL)
    stop(first)
    assert f"the checkpoint of step {3 * INTERVAL} is not saved" in first.message.message
    assert f"that of step {INTERVAL} counts" in first.message.message
    assert first.message.step == INTERVAL
    held.set()
    arena.proxy.mend()
    assert began(arena.finish(run, 2)) in (INTERVAL, 2 * INTERVAL)  # what was sent may have arrived since


@only_in_soak
def test_no_longer_than_fifteen_seconds(arena: Arena) -> None:
    """No upload gets anywhere."""
    run = arena.run()
    held = threading.Event()
    arena.proxy.fault("POST", r"checkpoints/", before=lambda: held.wait(300) and None, times=1000)
    first = arena.start(run, 1)
    wait_for_step(first, INTERVAL + 1)
    seconds = stop(first)
    held.set()
    assert SAVE_SECONDS - 1 < seconds < SAVE_SECONDS + 10, seconds
    assert "its upload takes longer than" in first.message.message
    arena.proxy.mend()
    arena.finish(run, 2)


def test_amid_an_evaluation_and_after_training(arena: Arena) -> None:
    """An evaluation that was broken off is made by the next attempt; so are the samples at the end."""
    run = arena.run(max_new_tokens=400, prompts=["Quote: Hello"], micro_batch_size=1)
    first = arena.start(run, 1)
    wait_for_step(first, 2 * INTERVAL)  # its evaluation begins now
    stop(first)
    second = arena.start(run, 2)
    wait_for(lambda: second.events("result verified"), "the verification", seconds=240, detail=second.log)
    stop(second)
    assert "samples after training" in second.message.message
    assert second.message.step == STEPS
    arena.finish(run, 3)


def test_amid_a_merge(arena: Arena) -> None:
    """While the merged weights go up: exit 30 and no manifest; the next merge is whole."""
    run = arena.undisturbed
    sniper = Sniper(signal.SIGTERM)
    arena.proxy.fault("POST", r"run/merged/.*\.safetensors", before=sniper.fire)
    first = arena.start(run, 1, role="merge")
    sniper.aim(first)
    assert first.wait() == ExitCode.INTERRUPTED, first.log()
    assert sniper.fired.is_set()
    assert "SIGTERM came" in first.message.message
    assert "run/merged/manifest.json" not in arena.gcs.names(run.bucket, "run/merged/")
    second = arena.start(run, 2, role="merge")
    assert second.wait() == ExitCode.DONE, second.log()
    assert "run/merged/manifest.json" in arena.gcs.names(run.bucket, "run/merged/")
