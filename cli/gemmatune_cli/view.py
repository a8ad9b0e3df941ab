"""What a person sees of a run, in `gft run` and `gft watch`: a progress bar, or plain lines where no one looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from gemmatune_api.names import ConditionType, Phase
from gemmatune_api.status import FineTuneStatus, Sample
from gemmatune_api.status import Progress as TrainingProgress
from gemmatune_cli.curve import curve
from gemmatune_operator.events import WARNING, transitions

LINE_SECONDS = 5.0
"""Shortest time between two plain lines of progress."""
CURVE_COLUMNS, CURVE_LINES = 72, 8
PHASE_STYLES: dict[str, str] = {
    Phase.SUCCEEDED: "bold green",
    Phase.FAILED: "bold red",
    Phase.RETRYING: "yellow",
    Phase.TRAINING: "cyan",
}


class View(Protocol):
    """Shows every status that it is given, and what changed since the one before."""

    def update(self, status: FineTuneStatus) -> None:
        """Shows a status."""

    def say(self, text: str, style: str = "") -> None:
        """Prints a line of its own."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_for(console: Console) -> View:
    """A live view on a terminal, plain lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def numbers(progress: TrainingProgress) -> str:
    """Loss, speed and remaining time in one line."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta and progress.step < progress.total_steps:
        parts.append(f"ETA {progress.eta}")
    return "  ".join(parts)


class _Transitions:
    """Prints the transitions of conditions, each once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: FineTuneStatus | None = None

    def update(self, status: FineTuneStatus) -> None:
        if self._last is None and any(item.type == ConditionType.ACCEPTED for item in status.conditions):
            # What happened before this view opened is told by the phase, not again one by one.
            self._line(status.phase, status.message, PHASE_STYLES.get(status.phase, "bold"))
        else:
            for event in transitions(self._last or FineTuneStatus(), status):
                self._line(event.reason, event.message, "yellow" if event.type == WARNING else "bold")
        self._last = status

    def _line(self, word: str, message: str, style: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._console.print(Text.assemble((f"{stamp} ", "dim"), (f"{word:<14}", style), f" {message}"))


class LiveView:
    """Transitions as lines above the loss curve and a progress bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._transitions = _Transitions(console)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[steps]}"),
            TextColumn("{task.fields[numbers]}", style="cyan"),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("", total=None, steps="", numbers="")
        self._curve: list[str] = []
        self._live = Live(console=console, transient=True, get_renderable=self._shown)

    def _shown(self) -> Group:
        return Group(*(Text(line, "cyan", no_wrap=True) for line in self._curve), self._progress)

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, status: FineTuneStatus) -> None:
        """Shows a status."""
        self._transitions.update(status)
        progress = status.progress or TrainingProgress()
        self._progress.update(
            self._task,
            description=status.phase or Phase.PENDING,
            total=progress.total_steps or None,
            completed=progress.step,
            steps=progress.step_text,
            numbers=numbers(progress),
        )
        width = min(CURVE_COLUMNS, self._console.width)
        self._curve = curve(progress.history_steps, progress.history_loss, width, CURVE_LINES)

    def say(self, text: str, style: str = "") -> None:
        """Prints a line above the bar."""
        self._console.print(Text(text, style))


class PlainView:
    """Transitions and progress as lines for logs and pipes.

    Args:
        clock: seconds; keeps the lines of progress at least LINE_SECONDS apart.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._transitions = _Transitions(console)
        self._clock = clock
        self._shown_step = -1
        self._shown_at = float("-inf")

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, status: FineTuneStatus) -> None:
        """Shows a status."""
        progress = status.progress
        if progress is not None and progress.total_steps and progress.step != self._shown_step:
            last = progress.step >= progress.total_steps
            if last or self._clock() - self._shown_at >= LINE_SECONDS:
                self._shown_step, self._shown_at = progress.step, self._clock()
                self._console.print(Text(f"step {progress.step_text}  {numbers(progress)}".rstrip()))
        self._transitions.update(status)

    def say(self, text: str, style: str = "") -> None:
        """Prints a line."""
        self._console.print(Text(text, style))


def summary(console: Console, status: FineTuneStatus) -> None:
    """The end of a run: samples before and after, and where the results lie; or what went wrong and what to do."""
    if status.phase == Phase.SUCCEEDED:
        console.print(Text.assemble((f"{status.phase}: ", PHASE_STYLES[Phase.SUCCEEDED]), status.message))
    print_samples(console, status.samples or [])
    if status.phase == Phase.FAILED:
        end = f"{status.phase}, {status.reason}: "
        console.print(Text.assemble((end, PHASE_STYLES[Phase.FAILED]), status.message))
        if status.remedy:
            console.print(Text(status.remedy))
    artifacts = status.artifacts
    if artifacts is not None:
        console.print()
        rows = (("adapter", artifacts.adapter), ("model", artifacts.model), ("merged", artifacts.merged))
        for label, uri in (
            *rows,
            ("report", artifacts.report),
            ("manifest", artifacts.manifest),
            ("serve", artifacts.serve_command),
        ):
            if uri:
                console.print(Text.assemble((f"{label:<9}", "dim"), uri))


def print_samples(console: Console, samples: Iterable[Sample]) -> None:
    """Prompts with their answers before and after."""
    for sample in samples:
        console.print(Text.assemble("\n", ("prompt  ", "dim"), (sample.prompt, "bold")))
        for label, text in (("before", sample.before), ("after", sample.after)):
            if text is not None:
                console.print(Text.assemble((f"{label:<7} ", "dim"), _indented(text)))


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n        ")
