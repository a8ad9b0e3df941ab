"""TensorBoard: event files under OUTPUT/report/tensorboard, one for each attempt, read together as one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.tracking import Ending, Record
from gemmatune_trainer.tracking.mirror import Mirror

FOLDER = "report/tensorboard"


class TensorBoard:
    """Writes event files here and copies them to the output."""

    name = "tensorboard"

    def __init__(self, config: RunConfig, folder: Path, from_step: int) -> None:
        self._folder = folder
        self._suffix = f".attempt-{config.attempt:05d}"
        self._from_step = from_step
        self._mirror = Mirror(config.output.uri, FOLDER, folder)
        self._writer: Any = None

    def open(self) -> None:
        """Begins this attempt's file; TensorBoard then forgets later steps of the files before."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(self._folder),
            purge_step=self._from_step + 1 if self._from_step else None,
            filename_suffix=self._suffix,
            write_to_disk=True,
        )

    def log(self, records: Sequence[Record]) -> None:
        """Writes the values, and now and then copies the file."""
        for record in records:
            for name, value in record.values.items():
                self._writer.add_scalar(name, value, record.step, walltime=record.time)
        self._copy(now=False)

    def close(self, ending: Ending) -> None:
        """Copies the whole file."""
        if self._writer is not None:
            self._copy(now=True)

    def _copy(self, now: bool) -> None:
        self._writer.flush()
        self._mirror.copy(sorted(self._folder.glob(f"events.*{self._suffix}")), now)
