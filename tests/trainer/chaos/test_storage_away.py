"""A storage that refuses, breaks off, damages or stays away: the run comes through, or the next attempt does."""

from __future__ import annotations

import signal

from gemmatune_api.names import ExitCode, Reason
from tests.support.soak import only_in_soak
from tests.support.trainerhost import STORAGE_TIMEOUT
from tests.trainer.chaos.arena import INTERVAL, Arena, began, folder_of, wait_for_step


def test_a_storage_full_of_faults(arena: Arena) -> None:
    """One attempt gets through all of them; what arrives damaged is sent again before a manifest vouches for it."""
    run = arena.run()
    faults = {
        name: arena.proxy.fault(method, pattern, **how)
        for name, method, pattern, how in (
            ("429", "POST", r"attempts/", {"code": 429}),
            ("500", "GET", r"prepared/", {"code": 500, "times": 2}),
            ("503 of a listing", "GET", r"checkpoints/$", {"code": 503}),
            ("cut upload", "POST", rf"{folder_of(1)}optimizer\.pt", {"cut": True}),
            ("damaged upload", "POST", rf"{folder_of(2)}adapter_model", {"damage": True}),
            ("lost answer", "POST", rf"{folder_of(3)}manifest\.json", {"lose": True}),
            ("500 of a deletion", "DELETE", r"checkpoints/", {"code": 500}),
            ("lost deletion", "DELETE", r"checkpoints/", {"lose": True}),
            ("429 of all files", "POST", folder_of(5), {"code": 429, "times": 4}),
            ("cut result", "POST", r"run/adapter/", {"cut": True}),
            ("lost last manifest", "POST", r"run/manifest\.json", {"lose": True}),
        )
    }
    process = arena.finish(run, 1)
    assert not [name for name, fault in faults.items() if not fault.met]
    assert began(process) == 0
    assert process.status["artifacts"]["sha256"] == arena.manifest["artifacts"]["sha256"]


def test_a_storage_that_does_not_answer(arena: Arena) -> None:
    """Connections stand and nothing comes, before or after the server has done what was asked: it is asked again."""
    run = arena.run()
    run.environment[STORAGE_TIMEOUT] = "3"
    faults = {
        name: arena.proxy.fault(method, pattern, silent=True, **how)
        for name, method, pattern, how in (
            ("its number", "POST", r"attempts/", {"lose": True}),
            ("the rows", "GET", r"prepared/.*/rows\.arrow", {}),
            ("a listing", "GET", r"checkpoints/$", {}),
            ("an upload", "POST", rf"{folder_of(1)}optimizer\.pt", {}),
            ("an upload that has arrived", "POST", rf"{folder_of(2)}adapter_model", {"lose": True}),
            ("a manifest that has arrived", "POST", rf"{folder_of(3)}manifest\.json", {"lose": True}),
            ("a deletion that is done", "DELETE", r"checkpoints/", {"lose": True}),
            ("the last manifest", "POST", r"run/manifest\.json", {"lose": True}),
        )
    }
    process = arena.finish(run, 1)
    assert not [name for name, fault in faults.items() if not fault.given_up]
    assert began(process) == 0
    assert process.status["artifacts"]["sha256"] == arena.manifest["artifacts"]["sha256"]


def test_damaged_checkpoints_in_the_bucket(arena: Arena) -> None:
    """One byte changed in the newest, a file of the next gone, rubbish for a manifest: the oldest one is whole."""
    run = arena.run(keep=5)
    first = arena.start(run, 1)
    wait_for_step(first, 5 * INTERVAL + 1)
    first.signal(signal.SIGKILL)
    first.wait()
    whole = arena.landed(run)
    assert len(whole) >= 4, whole
    bucket = arena.gcs.client().bucket(run.bucket)

    def blob(step: int, name: str) -> object:
        return bucket.blob(f"run/checkpoints/step-{step:08d}/{name}")

    flipped = blob(whole[-1], "optimizer.pt")
    data = bytearray(flipped.download_as_bytes())  # type: ignore[attr-defined]
    data[len(data) // 2] ^= 1
    flipped.upload_from_string(bytes(data))  # type: ignore[attr-defined]
    blob(whole[-2], "rng_state.pth").delete()  # type: ignore[attr-defined]
    blob(whole[-3], "manifest.json").upload_from_string("{}")  # type: ignore[attr-defined]
    last = arena.finish(run, 2)
    assert began(last) == whole[-4]
    faults = {event["step"]: event["fault"] for event in last.events("checkpoint passed over")}
    assert sorted(faults) == whole[-3:]
    assert "optimizer.pt has CRC32C" in faults[whole[-1]]
    assert "rng_state.pth is missing" in faults[whole[-2]]
    assert "manifest cannot be read" in faults[whole[-3]]
    assert f"The checkpoint of step {whole[-1]} is not used: optimizer.pt has CRC32C" in last.message.message
    assert f"step {whole[-1]}" in last.status["checkpoint"]["note"]


@only_in_soak
def test_a_storage_that_stays_away_ends_the_attempt(arena: Arena) -> None:
    """Longer than the trainer is patient; the next attempt goes on with what had landed."""
    run = arena.run()
    arena.proxy.fault("POST", folder_of(3), code=503, times=10_000)
    first = arena.start(run, 1)
    assert first.wait(600) == ExitCode.STORAGE_UNAVAILABLE, first.log()
    assert first.message.reason == Reason.STORAGE_UNAVAILABLE
    assert arena.landed(run) == [2 * INTERVAL]
    arena.proxy.mend()
    assert began(arena.finish(run, 2)) == 2 * INTERVAL
