"""What an upgrade must keep: a run that a former release left midway goes on, and ends as it would have ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load, load_file

from gemmatune_api import catalog, defaults, validate
from gemmatune_api.names import ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG, ExitCode
from gemmatune_cli.planning import Planned
from gemmatune_cli.render import objects
from gemmatune_operator.observe import status_of
from gemmatune_operator.settings import Settings
from tests.data.release import BUCKET, OUTPUT, RESULT, STEP, STEPS, Release
from tests.support.fakegcs import FakeGcs
from tests.support.trainerhost import TrainerProcess

ROUNDING = 1e-4
"""How far apart two machines may end: their libraries add in another order. On one machine nothing differs."""
Start = Callable[[dict[str, str], Path], TrainerProcess]
"""Carries out an attempt with an environment, and leaves its log and status in a folder."""


def goes_on(former: Release, operator: str, start: Start, folder: Path) -> None:
    """The second attempt, by the RunConfig that the operator wrote `then`, or that it writes `now`."""
    with FakeGcs() as gcs:
        former.upload(gcs)
        env = former.environment("t2", gcs, folder / "cache")
        run = start({**env, ENV_RUN: env[ENV_RUN] if operator == "then" else of_today(former)}, folder)
        ended = load(gcs.read(BUCKET, OUTPUT + RESULT))
    assert run.events("checkpoint passed over") == []
    assert run.events("training")[0]["from_step"] == STEP
    assert len(run.events("step")) == STEPS - STEP
    progress = run.status["progress"]
    losses = dict(zip(map(str, progress["historySteps"]), progress["historyLoss"], strict=True))
    assert losses == pytest.approx(former.facts["losses"], abs=1e-3), "those before the upgrade are remembered"
    expected = load_file(former.folder / "result" / Path(RESULT).name)
    begun = {name: value for name, value in expected.items() if "lora_B" in name}
    assert ended.keys() == expected.keys()
    apart = max(float(abs(expected[name] - ended[name]).max()) for name in expected)
    moved = max(float(abs(value).max()) for value in begun.values())  # these weights begin as zeros
    assert apart <= ROUNDING < moved / 20, (apart, moved)


def of_today(former: Release) -> str:
    """GEMMATUNE_RUN of the second attempt, as today's operator writes it for the former's resource."""
    resource = validate.parse(former.resource)
    resource = resource.model_copy(update={"spec": defaults.resolve(resource.spec)})
    status = status_of(former.resource["status"])
    assert status.plan is not None
    assert status.prepare is not None
    assert status.prepare.shape is not None
    model = catalog.by_config(status.prepare.shape)
    assert model is not None
    for made in objects(Planned(resource, model, status.plan), 2, Settings()):
        if made["metadata"]["name"] == "quotes-t2":
            (container,) = made["spec"]["template"]["spec"]["containers"]
            return next(str(item["value"]) for item in container["env"] if item["name"] == ENV_RUN)
    raise AssertionError("no second attempt")


def process(env: dict[str, str], folder: Path) -> TrainerProcess:
    """A trainer by its real command."""
    own = {ENV_TERMINATION_LOG: str(folder / "termination"), ENV_STATUS_FILE: str(folder / "status.json")}
    with (folder / "stderr").open("wb") as log:
        command = [sys.executable, "-m", "gemmatune_trainer", "train"]
        done = subprocess.run(command, env={**os.environ, **env, **own}, stderr=log, check=False)
    run = TrainerProcess(None, 0, folder)  # type: ignore[arg-type]  # it has ended: no host is asked for it
    assert done.returncode == ExitCode.DONE, run.log()
    return run
