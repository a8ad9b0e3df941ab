"""The losses of a run, from its first step on, over all attempts: for the status, the report and divergence."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from gemmatune_trainer.backends.base import Snapshot, Step
from gemmatune_trainer.stored import Shape, of_checkpoint

Item = TypeVar("Item")

FILE = "history.json"
STATUS_POINTS = 30
_SPEED_STEPS = 20


@dataclass(frozen=True, slots=True)
class Point:
    """The steps since the point before: `loss` is their mean, the rest is as at `step`.

    `tokens_per_second` is over the newest steps, `memory` in bytes (0: not known).
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Begun:
    """The beginning of an attempt: the step that it went on from, when (RFC 3339), and on what device."""

    attempt: int
    step: int
    time: str
    device: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation after `step` (0: of the base): mean loss over the labelled tokens (nats)."""

    step: int
    loss: float


class _Kept(Shape, strict=False):  # a backend may count in whole floats
    points: list[Point]
    evaluations: list[Evaluated]
    attempts: list[Begun] = Field(default_factory=list)
    waiting: list[Step] = Field(default_factory=list)


class History:
    """Points every `every` steps, the evaluations, the attempts, and the speed of the newest steps of this one.

    Of the attempts it knows those that the checkpoint it was restored from had behind it, and this one.
    """

    def __init__(
        self,
        every: int,
        points: list[Point] | None = None,
        evaluations: list[Evaluated] | None = None,
        attempts: list[Begun] | None = None,
    ) -> None:
        self._every = every
        self.points = points or []
        self.evaluations = evaluations or []
        self.attempts = attempts or []
        self._waiting: list[Step] = []
        self._recent: deque[Step] = deque(maxlen=_SPEED_STEPS)

    @classmethod
    def restored(cls, every: int, folder: Path) -> History:
        """The history that a checkpoint carries. Raises InvalidConfig where it cannot be read."""
        with of_checkpoint(folder / FILE):
            found = _Kept.of((folder / FILE).read_bytes())
        history = cls(every, found.points, found.evaluations, found.attempts)
        history._waiting = found.waiting
        return history

    def snapshot(self) -> Snapshot:
        """What is known now, for a checkpoint."""
        parts = {
            "points": list(self.points),
            "evaluations": list(self.evaluations),
            "attempts": list(self.attempts),
            "waiting": list(self._waiting),
        }

        def write(folder: Path) -> None:
            data = {name: [asdict(item) for item in items] for name, items in parts.items()}
            (folder / FILE).write_text(json.dumps(data), encoding="utf-8")

        return write

    def begin(self, attempt: int, step: int, device: str) -> None:
        """An attempt begins after `step`."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.attempts.append(Begun(attempt, step, now, device))

    def add(self, step: Step) -> Point | None:
        """Takes a step; the point it completes, where it does."""
        self._recent.append(step)
        self._waiting.append(step)
        if step.number % self._every:
            return None
        point = Point(
            step=step.number,
            loss=sum(item.loss for item in self._waiting) / len(self._waiting),
            learning_rate=step.learning_rate,
            gradient_norm=step.gradient_norm,
            tokens_per_second=round(self.tokens_per_second, 1),
            memory=step.memory,
        )
        self._waiting.clear()
        self.points.append(point)
        return point

    @property
    def tokens_per_second(self) -> float:
        """Over the newest steps."""
        seconds = sum(step.seconds for step in self._recent)
        return sum(step.tokens for step in self._recent) / seconds if seconds > 0 else 0.0

    @property
    def seconds_per_step(self) -> float:
        """Over the newest steps; 0 before the first one."""
        return sum(step.seconds for step in self._recent) / len(self._recent) if self._recent else 0.0

    @property
    def median_speed(self) -> float | None:
        """Tokens a second, over all points; None without one."""
        speeds = sorted(point.tokens_per_second for point in self.points)
        return speeds[len(speeds) // 2] if speeds else None

    @property
    def highest_memory(self) -> int | None:
        """Bytes; None where no point knows it."""
        return max((point.memory for point in self.points), default=0) or None

    def thinned(self, points: int = STATUS_POINTS) -> list[Point]:
        """At most `points` points, evenly spaced, with the first and the last."""
        return thin(self.points, points)


def thin(points: list[Item], most: int) -> list[Item]:
    """At most `most` (two or more) of the points, evenly spaced, with the first and the last."""
    last = len(points) - 1
    if last < most:
        return list(points)
    return [points[round(index * last / (most - 1))] for index in range(most)]
