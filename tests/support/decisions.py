"""Small runs on the embedded cluster whose end a single field decides: for the fields that no manifest shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gemmatune_api import names
from gemmatune_api.names import ExitCode
from gemmatune_operator.settings import Settings
from tests.support.play import NAMESPACE, Play

SPOT = {"provisioning": {"mode": "spot", "fallback": {"mode": "onDemand"}}}


class Choice(NamedTuple):
    """Two values of a field, and what happens to the run; the answers must differ by them alone."""

    one: Any
    other: Any
    story: Callable[[Play], object]
    around: dict[str, Any] = {}  # noqa: RUF012
    """Blocks of the spec that the field needs around it."""


def ends_twice(code: ExitCode) -> Callable[[Play], object]:
    """Attempts that end by an exit code, as long as there is another one, and at most two."""

    def story(play: Play) -> object:
        play.prepared()
        for number in (1, 2):
            if play.attempt.number == number and play.attempt.end_time is None:
                play.runs(f"quotes-t{number}")
                play.ends(f"quotes-t{number}", code)
                play.wait(600)
        return play.status.phase, [attempt.provisioning for attempt in play.status.attempts]

    return story


def stands_still_for_twenty_minutes(play: Play) -> object:
    play.training()
    play.steps(5)
    play.wait(1200)
    return play.status.attempts[0].reason


def waits_for_twenty_minutes(play: Play) -> object:
    play.prepared()
    play.wait(1200)
    return [(attempt.provisioning, attempt.reason) for attempt in play.status.attempts]


def begins(play: Play) -> object:
    play.look()
    return play.status.phase, play.jobs()


def trains_for_half_an_hour_at_one_an_hour(play: Play) -> object:
    play.settings = Settings(prices={"nvidia-l4": 1.0})
    play.training()
    play.wait(1000)
    play.steps(5)
    play.wait(800)
    return play.status.attempts[0].reason


def ends_and_is_kept_for_an_hour(play: Play) -> object:
    play.training()
    play.ends("quotes-t1", ExitCode.DONE, {"manifest": "gs://bucket/quotes/manifest.json"})
    play.reconcile_once(3600)
    return play.store.get(names.KIND, NAMESPACE, play.name) is not None


DECISIONS: dict[str, Choice] = {
    "limits.maxCost": Choice(0.4, 1.0, trains_for_half_an_hour_at_one_an_hour),
    "limits.maxRetries": Choice(0, 1, ends_twice(ExitCode.CRASHED)),
    "limits.maxPreemptions": Choice(0, 5, ends_twice(ExitCode.INTERRUPTED)),
    "limits.stallTimeout": Choice("15m", "30m", stands_still_for_twenty_minutes),
    "provisioning.fallback.afterPreemptions": Choice(1, 3, ends_twice(ExitCode.INTERRUPTED), SPOT),
    "provisioning.fallback.afterPending": Choice("10m", "30m", waits_for_twenty_minutes, SPOT),
    "suspend": Choice(True, False, begins),
    "ttlAfterFinished": Choice("1h", "2h", ends_and_is_kept_for_an_hour),
}
"""Leaves that a policy decides by, and no manifest shows."""
