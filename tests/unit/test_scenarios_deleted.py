"""Runs that are deleted: what they have used by then is counted once, whatever the watches show and when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_operator import reconcile
from gemmatune_operator.board import Board
from gemmatune_operator.cache import Cache
from gemmatune_operator.certainty import Certainty
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.journal import Journal
from gemmatune_operator.metrics import Gauges, Metrics
from gemmatune_operator.ports import Object
from gemmatune_operator.reconcile import Tools, look
from gemmatune_operator.settings import Settings
from tests.support.play import DONE, NAME, NAMESPACE, SPEC, Play

HOUR = timedelta(hours=1)


class Priced(Play):
    """A run whose accelerator costs 2 an hour, and an operator that counts."""

    watching = True

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings(prices={"nvidia-l4": 2.0})
        self.leads = True
        self.restart()

    def restart(self) -> None:
        """The operator starts anew, with counters at 0."""
        super().restart()
        assert self.tools.cache is not None
        board = Board(self.tools.cache.documents)
        self.metrics = Metrics(Gauges(lambda: 0.0, lambda: 0.0, lambda: 1.0, dict, board))
        self.tools = replace(self.tools, journal=Journal(self.metrics, lambda: self.leads))

    @property
    def cache(self) -> Cache:
        assert self.tools.cache is not None
        return self.tools.cache

    def looks(self) -> None:
        """One look, with what the test has told the cache."""
        tools: Tools = replace(self.tools, cluster=self.cluster, settings=self.settings)
        asyncio.run(look(tools, NAMESPACE, self.name, self.now))

    def going(self) -> None:
        """The resource is being deleted, and something holds it."""
        meta = {**self.resource["metadata"], "deletionTimestamp": rfc3339(self.now)}
        self.cache.resource("MODIFIED", {**self.resource, "metadata": {**meta, "resourceVersion": "900"}})

    def counted(self, cause: str = "Deleted") -> tuple[float, float, float]:
        """Attempts that ended so; accelerator hours and cost of the namespace."""
        place = f'{{run_namespace="{NAMESPACE}"}}'
        lines = dict(line.rsplit(" ", 1) for line in self.metrics.text().decode().splitlines())
        names_ = (
            f'gemmatune_attempts_ended_total{{cause="{cause}"}}',
            f"gemmatune_namespace_accelerator_seconds_total{place}",
            f"gemmatune_namespace_cost_total{place}",
        )
        attempts, seconds, cost = (float(lines.get(name, 0)) for name in names_)
        return attempts, round(seconds / 3600, 3), round(cost, 3)

    def last(self, version: str = "901") -> Object:
        """What a watch shows of the deletion."""
        return {**self.resource, "metadata": {**self.resource["metadata"], "resourceVersion": version}}


def test_seventy_hours_are_counted() -> None:
    play = Priced()
    play.training()
    play.now += 70 * HOUR
    gone = play.last()
    play.store.remove(names.KIND, NAMESPACE, NAME)
    play.cache.resource("DELETED", gone)
    play.looks()
    assert play.counted() == (1, 70, 140)
    play.now += HOUR
    play.looks()
    assert play.counted() == (1, 70, 140), "once"


def test_a_deletion_that_no_watch_has_shown() -> None:
    """The next list does."""
    play = Priced()
    play.training()
    play.now += 3 * HOUR
    play.store.remove(names.KIND, NAMESPACE, NAME)
    play.reconcile_once()
    assert play.counted() == (1, 3, 6)


def test_what_ended_before_is_not_counted_again() -> None:
    play = Priced()
    play.training()
    play.now += HOUR
    assert play.ends(f"{NAME}-t1", 0, DONE).phase == "Succeeded"
    before = play.counted("Completed")
    assert before == (1, 1, 2)
    gone = play.last()
    play.store.remove(names.KIND, NAMESPACE, NAME)
    play.cache.resource("DELETED", gone)
    play.looks()
    assert play.counted("Completed") == before
    assert play.counted()[0] == 0


def test_a_run_that_is_held_while_it_goes() -> None:
    """It trains on until its Job is gone; then that is counted, and not once more when the resource goes."""
    play = Priced()
    play.training()
    play.now += HOUR
    play.going()
    play.looks()
    assert play.counted() == (0, 0, 0)
    play.now += HOUR
    play.cache.job("DELETED", play.job(f"{NAME}-t1"))
    play.looks()
    assert play.counted() == (1, 2, 4)
    play.now += HOUR
    play.looks()
    gone = play.last()
    play.store.remove(names.KIND, NAMESPACE, NAME)
    play.cache.resource("DELETED", gone)
    play.looks()
    assert play.counted() == (1, 2, 4)


@pytest.mark.parametrize("held", [True, False])
def test_a_restart_counts_nothing_again(held: bool) -> None:
    """One that is still being deleted then is unknown to the new process, which cannot know what was counted."""
    play = Priced()
    play.training()
    play.now += HOUR
    play.going()
    if held:
        play.cache.job("DELETED", play.job(f"{NAME}-t1"))
    play.looks()
    assert play.counted()[0] == int(held)
    job = play.job(f"{NAME}-t1")
    play.restart()
    if not held:
        play.cache.job(None, job)
    play.going()
    play.looks()
    assert play.counted()[0] == 0
    play.cache.resource("DELETED", play.last())
    play.looks()
    assert play.counted()[0] == int(not held), "what still trained had not been counted"


def test_only_the_leader_counts() -> None:
    play = Priced()
    play.training()
    play.now += HOUR
    play.leads = False
    play.cache.resource("DELETED", play.last())
    play.looks()
    play.leads = True
    play.looks()
    assert play.counted() == (0, 0, 0)


@pytest.mark.parametrize("shown", [True, False])
def test_created_again_at_once(shown: bool) -> None:
    """The old run is counted though a look comes only when the new one is there, with or without its deletion shown."""
    play = Priced()
    play.training()
    play.now += HOUR
    gone = play.last()
    play.store.remove(names.KIND, NAMESPACE, NAME)
    if shown:
        play.cache.resource("DELETED", gone)
    new: dict[str, Any] = {"namespace": NAMESPACE, "name": NAME}
    play.store.create({"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": new, "spec": SPEC})
    play.cache.resource("ADDED", play.last("902"))
    play.looks()
    assert play.counted() == (1, 1, 2)


def test_created_again_and_looked_at_live_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look reads the new run before any watch has shown that the old one is gone."""
    play = Priced()
    play.training()
    play.now += HOUR
    play.store.remove(names.KIND, NAMESPACE, NAME)
    new: dict[str, Any] = {"namespace": NAMESPACE, "name": NAME}
    play.store.create({"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": new, "spec": SPEC})
    monkeypatch.setattr(reconcile, "certainty", lambda *_, **__: Certainty.LIVE)
    play.looks()
    monkeypatch.undo()
    play.cache.resource("ADDED", play.last("902"))
    play.looks()
    assert play.counted() == (1, 1, 2)


def test_an_answer_that_comes_late_brings_nobody_back() -> None:
    """The answer to a status write may come after the watch has shown the deletion."""
    play = Priced()
    play.training()
    play.now += HOUR
    written = play.last("900")
    play.cache.resource("DELETED", play.last())
    play.cache.resource("MODIFIED", written)
    assert play.cache.observe(NAMESPACE, NAME) is None
    play.store.remove(names.KIND, NAMESPACE, NAME)
    play.looks()
    assert play.counted() == (1, 1, 2)
    assert play.cache.keys == []
