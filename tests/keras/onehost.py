"""One of the hosts that train a step together, as a process: it writes what it has of a snapshot into its folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import backends
from gemmatune_trainer.backends.base import Step
from gemmatune_trainer.models import fetch
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag
from tests.trainer.conftest import ListedRows

LENGTHS = [40, 5, 38, 6, 39, 4, 41, 7, 20, 30, 33, 12, 90, 100, 17, 22]


class Saves:
    """A training that calls `save` after each step."""

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save

    def micro_batch(self) -> None:
        """Nothing."""

    def step_done(self, step: Step) -> None:
        """Saves."""
        self._save()


def main(config: RunConfig, folder: Path) -> None:
    ranks = Ranks.of_environment()
    ranks.join(config.device, config.backend)
    backend = backends.make(config, fetch(config.model, weights=True), StopFlag(), ranks)
    backend.load()
    backend.train(ListedRows(LENGTHS), len(LENGTHS), 1, None, Saves(lambda: backend.snapshot()(folder)))
    backend.save_weights(folder / "weights")
    ranks.leave()


if __name__ == "__main__":
    main(RunConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
