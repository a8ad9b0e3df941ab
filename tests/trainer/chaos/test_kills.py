"""SIGKILL at random moments: always the adapter of the undisturbed run, and never more lost than two intervals.

CI kills 5 times, a soak 30 times. GEMMATUNE_CHAOS_SEED repeats a failure, GEMMATUNE_CHAOS_RESULTS names the file for
the figures.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.soak import repeats
from tests.support.trainerhost import TrainerProcess
from tests.support.wait import wait_for
from tests.trainer.chaos.arena import INTERVAL, STEPS, Arena, Run, Sniper, began, reached, wait_for_step

RUNS = repeats(6)
SEED = int(os.environ.get("GEMMATUNE_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
RESULTS = os.environ.get("GEMMATUNE_CHAOS_RESULTS")
Arm = Callable[[Arena, Sniper, int], None]


@dataclass
class Kill:
    """One kill: when, the last step that was done, the one that the next attempt began with, and what was lost."""

    moment: str
    reached: int
    resumed: int
    lost: int


def at(method: str, name: str, **how: Any) -> Arm:
    """Kills when that request comes; `{step}` is the checkpoint that is aimed at."""

    def arm(arena: Arena, sniper: Sniper, step: int) -> None:
        options = {key: sniper.fire if value is Ellipsis else value for key, value in how.items()}
        arena.proxy.fault(method, name.format(step=f"{step:08d}"), **options)

    return arm


FILE = r"checkpoints/step-{step}/(optimizer\.pt|adapter_model\.safetensors)"
MANIFEST = r"checkpoints/step-{step}/manifest\.json"
IN_STEPS: dict[str, Arm | None] = {"in a step": None}
IN_UPLOADS: dict[str, Arm | None] = {
    "before a file goes up": at("POST", FILE, before=...),
    "while a file goes up": at("POST", FILE, before=..., cut=True),
    "once a file is up": at("POST", FILE, after=...),
    "while training waits for an upload": None,
}
AROUND_MANIFESTS: dict[str, Arm | None] = {
    "before the manifest": at("POST", MANIFEST, before=...),
    "before the manifest's answer": at("POST", MANIFEST, after=...),
    "between manifest and pruning": at("DELETE", r"checkpoints/", before=...),
    "amid pruning": at("DELETE", r"checkpoints/.*/manifest\.json", after=...),
}
ELSEWHERE: dict[str, Arm | None] = {
    "once the attempt has its number": at("POST", r"attempts/", after=...),
    "while a checkpoint is read": at("GET", r"checkpoints/.*/optimizer\.pt", before=...),
}
AT_THE_END: dict[str, Arm | None] = {
    "while the adapter goes up": at("POST", r"run/adapter/adapter_model", before=..., cut=True),
    "before the last manifest": at("POST", r"run/manifest\.json", before=...),
    "after the last manifest": at("POST", r"run/manifest\.json", after=...),
}


def chosen(chance: random.Random) -> list[tuple[str, Arm | None]]:
    """Five moments: one of each kind, in any order, the last one at the run's end."""
    kinds = [IN_STEPS, IN_UPLOADS, AROUND_MANIFESTS, chance.choice([IN_STEPS, IN_UPLOADS, AROUND_MANIFESTS])]
    picked = [chance.choice(list(kind.items())) for kind in kinds]
    chance.shuffle(picked)
    # Needs a checkpoint to read: the first attempt has none.
    return [*picked, chance.choice([*ELSEWHERE.items(), *AT_THE_END.items()])]


def kill(arena: Arena, run: Run, number: int, moment: str, arm: Arm | None, chance: random.Random) -> TrainerProcess:
    """Lets an attempt begin, and kills it at that moment."""
    newest = max(arena.landed(run), default=0)
    aim = min(newest + INTERVAL * chance.choice((1, 2)), STEPS)
    sniper = Sniper()
    held = threading.Event()
    if arm is not None:
        arm(arena, sniper, aim)
    elif moment in IN_UPLOADS:
        arena.proxy.fault("POST", FILE.format(step=f"{aim:08d}"), before=lambda: held.wait(300) and None)
    process = arena.start(run, number)
    sniper.aim(process)
    if arm is None:
        if moment in IN_UPLOADS:
            wait_for_step(process, min(aim + INTERVAL, STEPS))
        else:
            wait_for_step(process, newest + chance.randint(1, 2 * INTERVAL))
        sniper.fire()
    wait_for(sniper.fired.is_set, moment, seconds=240, detail=process.log)
    held.set()
    assert process.wait() == -signal.SIGKILL, process.log()
    arena.proxy.mend()
    return process


@pytest.mark.parametrize("index", range(RUNS))
def test_killed_five_times(arena: Arena, index: int) -> None:
    seed = SEED + index
    print(f"GEMMATUNE_CHAOS_SEED={seed}")
    chance = random.Random(seed)
    run = arena.run()
    kills: list[Kill] = []
    before: TrainerProcess | None = None
    moments = chosen(chance)
    for number, (moment, arm) in enumerate(moments, start=1):
        newest = max(arena.landed(run), default=0)
        process = kill(arena, run, number, moment, arm, chance)
        _count(kills, process, newest)
        kills.append(Kill(moment, max(reached(process), newest), -1, -1))
        before = process
    assert before is not None
    newest = max(arena.landed(run), default=0)
    last = arena.finish(run, len(moments) + 1)
    # One that was killed after its last manifest has finished the run.
    _count(kills, last, newest if last.events("training") else STEPS)
    for one in kills:
        assert one.lost <= 2 * INTERVAL, (seed, kills)
        if "waits for an upload" not in one.moment:
            assert one.lost < 2 * INTERVAL, (seed, kills)
    _record(seed, kills)


def _count(kills: list[Kill], process: TrainerProcess, newest: int) -> None:
    """What the kill before has cost, now that the next attempt has begun (or was killed before it did)."""
    if not kills:
        return
    start = began(process)
    assert start in (None, newest), "an attempt begins with the newest checkpoint that has landed"
    kills[-1].resumed = newest
    kills[-1].lost = max(0, kills[-1].reached - newest)


def _record(seed: int, kills: list[Kill]) -> None:
    if not RESULTS:
        return
    path = Path(RESULTS)
    runs = json.loads(path.read_text()) if path.exists() else []
    runs.append({"seed": seed, "equal": True, "kills": [asdict(one) for one in kills]})
    path.write_text(json.dumps(runs))
