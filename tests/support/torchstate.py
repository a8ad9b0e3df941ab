"""A training by the real backend torch in its own environment, and the state that it leaves for another backend.

The tests of other backends start it with the Python of that environment, beside their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gemmatune_api.runconfig import RunConfig
from gemmatune_cli.local.environments import python_of
from gemmatune_trainer.backends.base import Step
from gemmatune_trainer.models import fetch
from gemmatune_trainer.stop import StopFlag
from tests.trainer.conftest import ListedRows

ROOT = Path(__file__).resolve().parents[2]


def trained_by_torch(config: RunConfig, lengths: list[int], saved: int, folder: Path) -> list[float]:
    """Losses of all steps on rows of these lengths; the folder gets the state after step `saved`."""
    python = python_of("torch")
    assert python is not None, "make setup installs it"
    config = config.model_copy(update={"backend": "torch", "mesh": None})
    request = {"config": config.to_env(), "lengths": lengths, "saved": saved, "folder": str(folder)}
    command = [str(python), "-m", "tests.support.torchstate"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    losses: list[float] = json.loads(done.stdout.splitlines()[-1])
    return losses


def main() -> None:
    """Answers one request."""
    from gemmatune_trainer.backends.torch import TorchBackend

    request = json.load(sys.stdin)
    config, losses = RunConfig.from_env(request["config"]), []
    backend = TorchBackend(config, fetch(config.model, weights=True), StopFlag())
    backend.load()

    class Watcher:
        def micro_batch(self) -> None:
            """Nothing."""

        def step_done(self, step: Step) -> None:
            losses.append(step.loss)
            if step.number == request["saved"]:
                backend.snapshot()(Path(request["folder"]))

    lengths, steps = request["lengths"], config.training.max_steps or 0
    backend.train(ListedRows(lengths), len(lengths), steps, None, Watcher())
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
