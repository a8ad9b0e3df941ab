"""Weights & Biases: one run for all attempts, its id the resource's UID; offline where there is no key or no server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmatune_api.runconfig import RunConfig
from gemmatune_api.runtracking import WANDB_KEY, RunWandb
from gemmatune_trainer.logs import log
from gemmatune_trainer.tracking import STEP, Ending, Record, scrubbed
from gemmatune_trainer.tracking.mirror import Mirror

FOLDER = "report/wandb"
_INIT_SECONDS = 45.0


class WeightsAndBiases:
    """Logs to a project; offline it leaves files that `wandb sync` uploads."""

    name = "wandb"

    def __init__(self, config: RunConfig, wanted: RunWandb, settings: Mapping[str, str], folder: Path) -> None:
        self._config = config
        self._wanted = wanted
        self._settings = dict(settings)
        self._folder = folder
        self._mirror = Mirror(config.output.uri, FOLDER, folder / "wandb")
        self._run: Any = None

    def open(self) -> None:
        """Connects, else begins an offline run."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # crash reports go to nobody
        if os.environ.get(WANDB_KEY):
            try:
                self._init("online")
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the values are kept
                text = scrubbed(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
                log.warning("tracker", tracker=self.name, error=text, offline=self._mirror.uri)
                self._forget()
        self._init("offline")

    def _init(self, mode: str) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        identity = self._config.run
        self._run = wandb.init(
            project=self._wanted.project,
            entity=self._wanted.entity,
            id=identity.uid,
            name=f"{identity.namespace}/{identity.name}",
            resume="allow",
            mode=mode,
            dir=str(self._folder),
            config=self._settings,
            allow_val_change=True,  # a micro-batch may become smaller from one attempt to the next
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                init_timeout=_INIT_SECONDS,
            ),
        )
        self._run.define_metric("*", step_metric=STEP)

    def _forget(self) -> None:
        """Ends W&B's own process, which holds the run's id after a failure too, and the files until it ends."""
        import wandb

        wandb.teardown()

    def log(self, records: Sequence[Record]) -> None:
        """Logs the values against their steps: a resumed attempt may tell steps again, and W&B's own only grow."""
        for record in records:
            self._run.log({STEP: record.step, **record.values})
        self._copy(now=False)

    def close(self, ending: Ending) -> None:
        """Ends this attempt's part, and copies what is offline."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if ending == "finished" else 1)
        finally:
            self._forget()  # only then the files are whole
            self._copy(now=True)

    def _copy(self, now: bool) -> None:
        runs = self._folder.glob("wandb/offline-run-*")
        files = [file for run in runs for pattern in ("*.wandb", "files/*") for file in run.glob(pattern)]
        self._mirror.copy([file for file in files if file.is_file()], now)
