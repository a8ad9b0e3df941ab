"""Experiment trackers: a run's values also go to TensorBoard, Weights & Biases and MLflow, where asked.

Each tracker has a thread of its own, in which its library is imported, too: none ever holds up a step, and none ends a
run. What a tracker did not take is offered again; that it did not is said once.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from gemmatune_api.runconfig import RunConfig
from gemmatune_api.runtracking import MLFLOW_KEY, WANDB_KEY
from gemmatune_trainer.history import Evaluated, Point
from gemmatune_trainer.logs import log

Ending = Literal["finished", "interrupted", "failed"]

STEP = "step"
INTERVAL_SECONDS = 5.0
"""Time between two deliveries to a tracker."""
RETRY_SECONDS = 30.0
"""The same after one that failed."""
CLOSE_SECONDS = {"finished": 60.0, "interrupted": 3.0, "failed": 3.0}
"""How long the end of a run waits for each tracker: a pod that stops has little time."""
_WAITING = 100_000
"""Values that are kept for a tracker that does not take them; the oldest go first."""
_RANK = "RANK"
"""Set by torchrun: of several processes the first one speaks for the run."""
_SECRETS = (WANDB_KEY, MLFLOW_KEY, "HF_TOKEN")


@dataclass(frozen=True, slots=True)
class Record:
    """Values of one step, by name; `time` in seconds since 1970."""

    step: int
    values: dict[str, float]
    time: float


class Tracker(Protocol):
    """One tracker; every method is called in the tracker's own thread and may raise anything."""

    name: str

    def open(self) -> None:
        """Connects, and finds the run of an earlier attempt; called again after it has failed."""

    def log(self, records: Sequence[Record]) -> None:
        """Takes all of these records, or raises; then it gets them again."""

    def close(self, ending: Ending) -> None:
        """The attempt has ended."""


class Tracking:
    """The trackers of an attempt."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._feeds = [_Feed(tracker) for tracker in trackers]

    def point(self, point: Point) -> None:
        """A point of the history."""
        values = {
            "train/loss": point.loss,
            "train/learning_rate": point.learning_rate,
            "train/gradient_norm": point.gradient_norm,
            "train/tokens_per_second": point.tokens_per_second,
            "train/memory_bytes": float(point.memory),
        }
        self._put(point.step, values)

    def evaluated(self, item: Evaluated) -> None:
        """An evaluation."""
        self._put(item.step, {"eval/loss": item.loss})

    def close(self, ending: Ending) -> None:
        """Delivers what waits, and leaves; takes no longer than CLOSE_SECONDS."""
        for feed in self._feeds:
            feed.end(ending)
        deadline = time.monotonic() + CLOSE_SECONDS[ending]
        for feed in self._feeds:
            feed.join(deadline - time.monotonic())

    def _put(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for feed in self._feeds:
            feed.put(Record(step, finite, time.time()))


class _Feed:
    """Delivers to one tracker, in a thread that the process does not wait for."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._waiting: list[Record] = []
        self._lock = threading.Lock()
        self._ending: Ending | None = None
        self._ended = threading.Event()
        self._opened = self._told = False
        self._thread = threading.Thread(target=self._run, name=tracker.name, daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        with self._lock:
            self._waiting.append(record)
            del self._waiting[:-_WAITING]

    def end(self, ending: Ending) -> None:
        self._ending = ending
        self._ended.set()

    def join(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._trouble("it did not take the last values in time")

    def _run(self) -> None:
        while True:
            delivered = self._deliver()
            ending = self._ending
            if ending is not None:
                if self._waiting and delivered:
                    self._deliver()
                self._guarded(partial(self._tracker.close, ending))
                return
            self._ended.wait(INTERVAL_SECONDS if delivered else RETRY_SECONDS)

    def _deliver(self) -> bool:
        """Whether the tracker took everything."""
        if not self._opened:
            self._opened = self._guarded(self._tracker.open)
        with self._lock:
            records = list(self._waiting)
        if not self._opened or not self._guarded(partial(self._tracker.log, records)):
            return False
        with self._lock:
            del self._waiting[: len(records)]
        return True

    def _guarded(self, work: Callable[[], None]) -> bool:
        try:
            work()
            return True
        except Exception as error:  # noqa: BLE001 - no tracker is worth a run
            self._trouble(f"{type(error).__name__}: {error}")
            return False

    def _trouble(self, text: str) -> None:
        if not self._told:
            self._told = True
            log.warning("tracker", tracker=self._tracker.name, error=scrubbed(" ".join(text.split()))[:500])


def scrubbed(text: str) -> str:
    """The text without the values of known secrets."""
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, f"({name})")
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def open_tracking(config: RunConfig, settings: Sequence[tuple[str, str]], scratch: Path, from_step: int) -> Tracking:
    """The trackers that the run asks for; `settings` are named values for people, without secrets.

    `from_step` is the step that the attempt begins with: what an earlier one told of later steps is told again.
    """
    wanted = config.tracking if os.environ.get(_RANK, "0") == "0" else None
    trackers: list[Tracker] = []
    if wanted is not None and wanted.tensorboard:
        from gemmatune_trainer.tracking.tensorboard import TensorBoard

        trackers.append(TensorBoard(config, scratch / "tensorboard", from_step))
    if wanted is not None and wanted.wandb is not None:
        from gemmatune_trainer.tracking.wandb import WeightsAndBiases

        trackers.append(WeightsAndBiases(config, wanted.wandb, dict(settings), scratch / "wandb"))
    if wanted is not None and wanted.mlflow is not None:
        from gemmatune_trainer.tracking.mlflow import MLflow

        trackers.append(MLflow(config, wanted.mlflow, dict(settings)))
    return Tracking(trackers)
