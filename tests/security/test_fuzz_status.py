"""Any status that the API server takes: it ends no look of the operator, no scrape of its metrics, no view of gft."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from gemmatune_api.status import FineTuneStatus
from gemmatune_cli import top, view
from gemmatune_cli.console import harmless
from gemmatune_operator import board, events
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.observe import of_resource, status_of, with_jobs
from gemmatune_operator.policies import plan
from gemmatune_operator.reconcile import operator_fields
from tests.security.mutations import places
from tests.security.statuses import DURATIONS, PRICED, TIMES, Stage, schema, stages, stored
from tests.security.test_fuzz import locked_in
from tests.support.soak import SOAK

EXAMPLES = 3000 if SOAK else 100
LATER = (0, 60, 7200, 3_000_000)
FUZZED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": not SOAK}
fuzzed = settings(max_examples=EXAMPLES, **FUZZED)


def look(stage: Stage, seconds: float) -> None:
    """One look of the operator, with the Jobs and pods of the stage, as far as its writes."""
    observed = with_jobs(of_resource(stage.resource), stage.jobs, stage.pods)
    decision = plan(observed, stage.now + timedelta(seconds=seconds), PRICED)
    for made in decision.create:
        locked_in(made)
    json.dumps(operator_fields(decision.status), allow_nan=False)
    list(events.transitions(observed.status, decision.status))


def scrape(stage: Stage, seconds: float) -> None:
    """What metrics show of the run."""
    text = json.dumps(stage.resource).encode()
    now = stage.now + timedelta(seconds=seconds)
    for card in board.Board(lambda: [(("team", "quotes"), 1, text)]).cards(now).values():
        board.numbers(card, now)


@fuzzed
@given(stored(), st.sampled_from(LATER))
def test_any_status_is_looked_at(stage: Stage, seconds: float) -> None:
    look(stage, seconds)


@fuzzed
@given(stored(), st.sampled_from(LATER))
def test_any_status_is_scraped(stage: Stage, seconds: float) -> None:
    scrape(stage, seconds)


@fuzzed
@given(stored())
def test_any_status_is_shown(stage: Stage) -> None:
    resource = harmless(stage.resource)
    status = status_of(resource["status"])
    console = Console(file=io.StringIO(), width=120, highlight=False, markup=False)
    console.print(top.table([resource], stage.now, everywhere=True))
    view.summary(console, status)
    for kind in (view.LiveView, view.PlainView):
        with kind(console) as shown:
            shown.update(status)


@pytest.mark.parametrize("text", [*TIMES, *DURATIONS], ids=lambda text: text[:40])
def test_every_time_may_be_another(text: str) -> None:
    """Each by itself: few of those that chance makes meet the one that a stage goes by."""
    changed = 0
    for stage in stages():
        for *way, last in places(stage.resource["status"])[1:]:
            resource = copy.deepcopy(stage.resource)
            block = resource["status"]
            for part in way:
                block = block[part]
            if last == "eta" if text in DURATIONS else isinstance(block[last], str) and parse_time(block[last]):
                block[last] = text
                resource["status"]["message"] = "Something else."  # the operator writes its own
                look(stage._replace(resource=resource), 60)
                scrape(stage._replace(resource=resource), 60)
                changed += 1
    assert changed >= 4


def test_the_stages_have_every_field() -> None:
    """And the operator has something to do in them, or what is fuzzed would never be looked at."""
    fields = {name for stage in stages() for name in stage.resource["status"]}
    assert set(schema()["properties"]) - fields == {"nextAttemptTime", "defaults"}
    for stage in stages():
        FineTuneStatus.model_validate(stage.resource["status"])
        look(stage, 0)


def test_most_odd_statuses_are_read_whole() -> None:
    """Each of their fields has the type that it should have, and most fields are odd in one of them."""
    whole, odd = [], set[str]()

    @settings(max_examples=EXAMPLES, **{**FUZZED, "derandomize": True})
    @given(stored())
    def drawn(stage: Stage) -> None:
        (before,) = [item.resource["status"] for item in stages() if item.name == stage.name]
        odd.update(_changed(before, stage.resource["status"]))
        try:
            FineTuneStatus.model_validate(stage.resource["status"])
        except ValueError:
            return
        whole.append(stage.name)

    drawn()
    assert len(whole) > EXAMPLES / 2
    assert len(set(whole)) > len(stages()) / 2
    assert len(odd) > len(schema()["properties"]) * 0.8


def _changed(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name in before | after:
        if before.get(name) != after.get(name):
            yield name


@pytest.mark.parametrize(
    "curve",
    [
        {"historySteps": [1, 2], "historyLoss": [1e308, -1e308]},
        {"historySteps": [1, 2], "historyLoss": [5e-324, 0]},
        {"historySteps": [10, 20, 0], "historyLoss": [1, 2, 3]},
        {"historySteps": [0, 100, 50], "historyLoss": [1, 2, 3]},
    ],
    ids=str,
)
def test_odd_curves_are_drawn(curve: dict[str, Any]) -> None:
    """What has ended `gft watch`, or could have."""
    console = Console(file=io.StringIO(), width=120)
    with view.LiveView(console) as shown:
        shown.update(status_of({"progress": curve}))
