"""What a person sees of a run: each transition once, progress not too often, and how it ended."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.view import LINE_SECONDS, LiveView, PlainView, summary, view_for


class Screen:
    """A console whose text can be read."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=200, color_system=None)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def status(step: int = 0, total: int = 40, phase: str = "Training", **fields: Any) -> FineTuneStatus:
    progress = {"step": step, "totalSteps": total, "stepText": f"{step}/{total}", **fields}
    return FineTuneStatus.model_validate(
        {
            "phase": phase,
            "message": "Attempt 1 trains.",
            "progress": progress,
            "conditions": [
                condition("Accepted", "True", "Valid", "It fits."),
                condition("Training", "True", "Running", "Attempt 1 trains."),
            ],
        }
    )


def test_transitions_are_told_once() -> None:
    screen = Screen()
    with PlainView(screen.console) as view:
        view.update(FineTuneStatus())
        for _ in range(3):
            view.update(status())
    assert sum("It fits." in line for line in screen.lines) == 1
    assert sum("Attempt 1 trains." in line for line in screen.lines) == 1


def test_a_view_that_opens_late_tells_the_phase_and_not_the_history() -> None:
    screen = Screen()
    with PlainView(screen.console) as view:
        view.update(status(3))
    assert sum("Attempt 1 trains." in line for line in screen.lines) == 1
    assert not any("It fits." in line for line in screen.lines)


def test_plain_lines_of_progress_keep_their_distance_but_the_last_one_comes() -> None:
    screen = Screen()
    seconds = 0.0
    view = PlainView(screen.console, clock=lambda: seconds)
    for step in range(41):
        view.update(status(step, loss=1.5, tokensPerSecond=1234.5, eta="1m"))
        seconds += 1
    steps = [line for line in screen.lines if line.startswith("step")]
    assert steps[1] == f"step {LINE_SECONDS:.0f}/40  loss 1.5000  1,234 tokens/s  ETA 1m"
    assert steps[-1] == "step 40/40  loss 1.5000  1,234 tokens/s"
    assert len(steps) == 9


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    screen = Screen(terminal=True)
    view = view_for(screen.console)
    assert isinstance(view, LiveView)
    assert isinstance(view_for(Screen().console), PlainView)
    with view:
        view.update(status(10, loss=2.5, tokensPerSecond=80, eta="2m"))
        view.say("Stopping")
    text = screen.file.getvalue()
    for part in ("Training", "10/40", "loss 2.5000", "80 tokens/s", "ETA 2m", "Stopping"):
        assert part in text


def test_the_summary_of_a_success_shows_samples_and_places() -> None:
    screen = Screen()
    done = status(40, phase="Succeeded").model_dump(by_alias=True)
    done |= {
        "samples": [{"prompt": "Quote: x", "before": "prose [bold]", "after": "words\nAuthor: y"}],
        "artifacts": {"adapter": "file:///o/adapter", "report": "file:///o/report.html"},
    }
    summary(screen.console, FineTuneStatus.model_validate(done))
    text = "\n".join(screen.lines)
    assert "prose [bold]" in text
    assert "after   words\n        Author: y" in text
    assert "adapter  file:///o/adapter" in text
    assert "merged" not in text


def test_the_summary_of_a_failure_says_what_to_do() -> None:
    screen = Screen()
    failed = {"phase": "Failed", "reason": "DataInvalid", "message": "Row 7 has no text.", "remedy": "Correct row 7."}
    summary(screen.console, FineTuneStatus.model_validate(failed))
    assert screen.lines == ["Failed, DataInvalid: Row 7 has no text.", "Correct row 7."]
