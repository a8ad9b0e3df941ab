"""Evaluation during training: when it is due, what it found, and the adapter of its lowest loss."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.base import Backend, Snapshot
from gemmatune_trainer.data.mapped import PreparedData
from gemmatune_trainer.errors import DataInvalid, naming
from gemmatune_trainer.history import Evaluated, History
from gemmatune_trainer.logs import log
from gemmatune_trainer.stored import of_checkpoint

_BEST = "best"
_FACTS = "best.json"
_NUMBERS = TypeAdapter(tuple[int, float])


class Evaluation:
    """The evaluations of an attempt; without rows to evaluate on, none is ever due.

    The best adapter is kept in a folder of `scratch`, and travels in every checkpoint, so that a run that resumes ends
    with the same one.
    """

    def __init__(self, config: RunConfig, backend: Backend, rows: PreparedData | None, scratch: Path) -> None:
        # With each checkpoint where no interval is given: at steps that no interruption shifts, if steps count them.
        self._every = config.training.eval_every_steps or config.checkpoint.every_steps
        self._best = config.checkpoint.best
        self._backend = backend
        self._rows = rows
        self._folder = scratch / _BEST
        self._snapshots = itertools.count()
        self.chosen: Evaluated | None = None
        """The evaluation of the best adapter so far, where the best one is asked for."""

    def missed(self, step: int, total_steps: int, history: History) -> bool:
        """Whether the evaluation of `step`, which a run begins or resumes with, is still to be made.

        That of a checkpoint which a time made due is none of these: the next one has its own.
        """
        if self._rows is None or any(item.step == step for item in history.evaluations):
            return False
        return step in (0, total_steps) or (self._every is not None and step % self._every == 0)

    def due(self, step: int, *, with_checkpoint: bool, last: bool) -> bool:
        """Whether to evaluate after `step`."""
        if self._rows is None:
            return False
        return last or (with_checkpoint if self._every is None else step % self._every == 0)

    def run(self, step: int, history: History, alive: Callable[[], None]) -> None:
        """Evaluates; `alive` is called before every forward pass and may end training.

        Raises:
            DataInvalid: the rows have no token with a loss.
        """
        if self._rows is None:
            return
        started = time.monotonic()
        total, labelled = self._backend.evaluate(self._rows, self._rows.rows, alive)
        if not labelled:
            raise DataInvalid("no row to evaluate on has a token with a loss", "Correct dataset.evalUri.")
        found = Evaluated(step, total / labelled)
        history.evaluations.append(found)
        seconds = round(time.monotonic() - started, 1)
        log.info("evaluation", step=step, loss=float(f"{found.loss:.4g}"), rows=self._rows.rows, seconds=seconds)
        if self._best and step and (self.chosen is None or found.loss < self.chosen.loss):
            shutil.rmtree(self._folder, ignore_errors=True)
            with naming(str(self._folder)):
                self._backend.save_weights(self._folder)
            self.chosen = found

    def snapshot(self) -> Snapshot:
        """The best adapter, for a checkpoint: hard links of its files, which a better one does not overwrite."""
        chosen, links = self.chosen, self._folder.with_name(f"{_BEST}-{next(self._snapshots)}")

        def write(folder: Path) -> None:
            if chosen is not None:
                links.rename(folder / _BEST)
                (folder / _FACTS).write_text(json.dumps([chosen.step, chosen.loss]), encoding="utf-8")

        if chosen is not None:
            shutil.copytree(self._folder, links, copy_function=os.link)
        return write

    def restore(self, folder: Path) -> None:
        """Takes over the best adapter of a checkpoint."""
        if self._best and (folder / _FACTS).exists():
            with of_checkpoint(folder / _FACTS):
                step, loss = _NUMBERS.validate_json((folder / _FACTS).read_bytes(), strict=True)
            self.chosen = Evaluated(step, loss)
            shutil.rmtree(self._folder, ignore_errors=True)
            shutil.copytree(folder / _BEST, self._folder)

    def choose(self, last_step: int) -> int:
        """Puts the best adapter into the model, where it is asked for; the step that the result is of."""
        if self.chosen is None or self.chosen.step == last_step:
            return last_step
        log.info("the best adapter is taken", step=self.chosen.step, loss=float(f"{self.chosen.loss:.4g}"))
        self._backend.restore_weights(self._folder)
        return self.chosen.step
