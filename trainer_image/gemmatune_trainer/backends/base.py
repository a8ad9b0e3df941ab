"""What a training backend offers to the story of a run, and what it tells while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gemmatune_trainer.models import ModelFiles

Row = tuple[Sequence[int], Sequence[int]]
"""Input ids and labels of a row (-100 where not trained)."""


Snapshot = Callable[[Path], None]
"""Writes the state that it holds into a folder: once, from any thread, while training goes on."""


class Rows(Protocol):
    """The tokenised rows that prepare left."""

    def row(self, index: int) -> Row:
        """One row."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step that was done.

    `number` counts from 1, `loss` is the mean over the step's labelled tokens (nats), `gradient_norm` is that before
    clipping, `learning_rate` is the one that it was made with, `seconds` the time since the step before, `memory` the
    bytes that training takes of its device.
    """

    number: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    labelled_tokens: int
    seconds: float
    memory: int = 0


COMPILING_STEPS = 2
"""Steps of an attempt that may compile; a compilation after them is told."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a training by a compiling backend has compiled and padded, in this attempt."""

    compilations: int
    """Compilations of all steps."""
    late: int
    """Those after step 2 of the attempt."""
    seconds: float
    """Time that they took."""
    padding: float
    """Share of the computed tokens that were padding."""

    @property
    def told(self) -> dict[str, float]:
        """The same for the log."""
        return {
            "compilations": self.compilations,
            "after_step_2": self.late,
            "seconds": round(self.seconds, 1),
            "padding": round(self.padding, 4),
        }


class Training(Protocol):
    """Whom a backend talks to while it trains; any method may end training by an exception."""

    def micro_batch(self) -> None:
        """Before every forward pass."""

    def step_done(self, step: Step) -> None:
        """After every optimizer step; `Backend.snapshot` may be called from here."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where all variables of one kind lie: `count` of them, alike but for the number of their layer.

    `axes` names the axis of the mesh along which each dimension is divided, None where a device has all of it.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    bytes: int
    device_bytes: int

    @property
    def divided(self) -> str:
        """`model, -`, or where nothing is divided `every device has it`."""
        return ", ".join(axis or "-" for axis in self.axes) if any(self.axes) else "every device has it"


@dataclass(frozen=True, slots=True)
class Verification:
    """What the comparison of the trained with the reloaded result found.

    `largest_difference` is that of the logits of trained and reloaded model, `delta` the largest difference that
    training makes against the base: an adapter to the logits, full tuning to a weight. `exported` is the number of
    weights in the result's files, where that is another than the number of trained ones (`parameters`), and `rank` the
    largest rank of an adapter's modules there: one that keras began has a larger one than the run's. `placed` is where
    weights and optimizer variables lay, where a mesh divides them.
    """

    largest_difference: float
    delta: float
    parameters: int
    exported: int | None = None
    rank: int | None = None
    placed: tuple[Placement, ...] = ()


class Backend(Protocol):
    """Loads a model, with an adapter where one is trained, trains it, and writes it down."""

    def use(self, files: ModelFiles) -> None:
        """Names the model's files, where they were not known before `load`."""

    def load(self) -> None:
        """Loads the base, quantises it where asked, and attaches a fresh adapter (by the run's seed)."""

    def generate(self, prompt: Sequence[int], new_tokens: int, stop_at: Sequence[int], *image: Any) -> list[int]:
        """Greedy continuation of a prompt without its terminator; ends early where the process shall stop.

        `image`: the picture that the prompt is about, [height, width, 3] in bytes, of a model that reads images.
        """

    def train(
        self, rows: Rows, number_of_rows: int, total_steps: int, start: Path | None, training: Training
    ) -> Tally | None:
        """Trains up to `total_steps`, from the state in folder `start` where one is given; what was compiled for it."""

    def evaluate(self, rows: Rows, number_of_rows: int, alive: Callable[[], None]) -> tuple[float, int]:
        """Summed loss (nats) over the labelled tokens of all rows, and their number; changes nothing that is trained.

        `alive` is called before every forward pass and may raise to end it.
        """

    def snapshot(self) -> Snapshot:
        """Copies weights, optimizer, schedule, random states and step as they were after the last optimizer step.

        Training waits for the copy in memory alone; what it gives back does the writing.
        """

    def save_weights(self, folder: Path) -> None:
        """Writes what is trained, bit by bit."""

    def restore_weights(self, folder: Path) -> None:
        """Puts the weights of a folder, as save_weights wrote them, into the model in place of the trained ones."""

    def save_result(self, folder: Path) -> None:
        """Writes what the run is for: the PEFT adapter, or the whole model in the run's precision."""

    def verify(self, folder: Path, row: Sequence[int]) -> Verification:
        """Reloads the result of a folder as its users will and compares; the reloaded model is used from then on.

        Raises:
            AdapterInvalid, ModelInvalid: weights are missing or unexpected, the outputs differ, or nothing has changed.
        """
