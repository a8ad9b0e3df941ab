"""deleted: what the open attempt of a deleted run has used, by the rule of an attempt's end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api.status import Attempt, FineTuneStatus, Timers
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.decision import Situation
from gemmatune_operator.policies.deleted import DELETED, deleted, trains_on
from gemmatune_operator.settings import Settings
from gemmatune_operator.views import JobView
from tests.support.situations import NOW, attempt, decision, ended_pod, job, pod, resource, situation

L4 = Settings(prices={"nvidia-l4": 3.6})
TRAINS = {"training_time": rfc3339(NOW), "cost_per_hour": 3.6}


def seen(*attempts: Attempt, jobs: tuple[JobView, ...] = (), hours: float = 70, **fields: Any) -> Situation:
    """The situation when a run is deleted that had trained for 100 s before."""
    status = decision(*attempts, timers=Timers(active_seconds=100.0, spent=0.5)).status
    raw = resource(fields.pop("spec", None), status=status.model_dump(by_alias=True, exclude_none=True))
    return situation(raw, now=NOW + timedelta(hours=hours), jobs=jobs, settings=fields.pop("settings", L4))


def used(found: FineTuneStatus | None) -> tuple[float, float]:
    assert found is not None
    assert found.timers is not None
    return found.timers.active_seconds, found.timers.spent


def test_what_it_trained_until_now() -> None:
    found = deleted(seen(attempt(end_time=rfc3339(NOW)), attempt(2, **TRAINS)))
    assert used(found) == (100 + 70 * 3600, 0.5 + 70 * 3.6)
    assert found is not None
    assert [item.number for item in found.attempts] == [1, 2]
    last = found.attempts[-1]
    assert (last.reason, last.end_time) == (DELETED, rfc3339(NOW + timedelta(hours=70)))


def test_what_had_ended_before() -> None:
    assert deleted(seen()) is None
    assert deleted(seen(attempt(end_time=rfc3339(NOW), **TRAINS))) is None


def test_an_attempt_that_had_not_begun() -> None:
    assert deleted(seen(attempt(start_time=None))) is None, "recorded, and not made yet"
    assert used(deleted(seen(attempt(start_time=None), jobs=(job(),)))) == (100, 0.5)
    assert used(deleted(seen(attempt()))) == (100, 0.5), "it waited for a node"


def test_its_pods_tell_more_than_the_status() -> None:
    began, ended = NOW + timedelta(hours=1), NOW + timedelta(hours=3)
    running = job("quotes-t1", pod(started=began))
    assert used(deleted(seen(attempt(cost_per_hour=3.6), jobs=(running,)))) == (100 + 69 * 3600, 0.5 + 69 * 3.6)
    over = job("quotes-t1", ended_pod(0, started=began, finished=ended))
    assert used(deleted(seen(attempt(**TRAINS), jobs=(over,)))) == (100 + 3 * 3600, 0.5 + 3 * 3.6)


@pytest.mark.parametrize(
    ("recorded", "settings", "spec", "cost"),
    [
        (7.0, L4, None, 7.0),
        (None, L4, None, 3.6),
        (None, Settings(), None, 0.0),
        (7.0, L4, {"model": None}, 7.0),
        (None, L4, {"model": None}, 0.0),
    ],
)
def test_its_price(recorded: float | None, settings: Settings, spec: Any, cost: float) -> None:
    """As it was recorded, else by the price table, which needs a spec that can be read."""
    trains = attempt(training_time=rfc3339(NOW), cost_per_hour=recorded)
    assert used(deleted(seen(trains, hours=1, settings=settings, spec=spec))) == (3700, 0.5 + cost)


def test_whether_it_still_trains() -> None:
    now = seen(attempt(**TRAINS), jobs=(job(),)).observed
    assert trains_on(now)
    assert not trains_on(replace(now, jobs={}))
    assert not trains_on(replace(now, jobs={"quotes-t1": job(complete=True)}))
    assert not trains_on(replace(now, status=FineTuneStatus()))
    assert not trains_on(seen(attempt(end_time=rfc3339(NOW)), jobs=(job(),)).observed)
