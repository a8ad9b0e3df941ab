"""What the operator's benchmark says of its targets, from measurements that are made up here."""

from __future__ import annotations

from typing import Any

import pytest

from bench import verdict
from tools.held import HELD, NOT_ASKED, UNKNOWN, missed

BURST = {"resources": 500, "per_second": 160.0, "p50": 0.1, "p95": 0.4, "cpu_seconds_per_1000": 6.0}


def found(**progress: Any) -> dict[str, Any]:
    """A run of the benchmark in which everything is reached, but for what is said of progress."""
    told = {"writes": 12_000, "seconds": 120.5, "rate": 100.0, "lost": 0, "harmed": 0, "calls": {}}
    cpu = {"operator": 10.0, "floor": 10.0, "load": 20.0, "kube-apiserver": 120.0, "etcd": 12.0}
    kinds = {f"{what} {kind}": [BURST] for what in ("burst", "paced", "finish") for kind in ("bare", "operator")}
    return {
        **kinds,
        "growth burst": [],
        "growth paced": [],
        "idle operator": [[0.005]],
        "idle bare": [[0.005]],
        "requests": [{"by_verb": {}, "writes_without_events": 7.0}],
        "memory": [{"operator": 1, "floor": 1}],
        "progress": [{**told, "cpu": cpu, **progress}],
        "restart": [{"seconds": 4.0, "writes": 0}],
    }


ABOUT_PROGRESS = ("Progress writes lost", "Requests by the operator meanwhile", "Processor time meanwhile / floor")


def met(raw: dict[str, Any]) -> dict[str, bool | None]:
    rows = verdict.document(raw)["targets"]
    assert len({row["what"] for row in rows}) == len(rows), "a row is known by its name"
    return {row["what"]: row["met"] for row in rows}


def test_everything_is_reached() -> None:
    assert set(met(found()).values()) == {True}


@pytest.mark.parametrize(("seconds", "reached"), [(126.3, True), (126.4, False), (252.0, False)])
def test_what_is_promised_at_a_rate_is_shown_only_at_that_rate(seconds: float, reached: bool) -> None:
    rows = met(found(seconds=seconds))
    assert rows.pop("Progress writes, 100/s asked") is reached
    assert {rows.pop(name) for name in ABOUT_PROGRESS} == {True if reached else None}
    assert set(rows.values()) == {True}


@pytest.mark.parametrize(
    ("what", "missed"),
    [
        ({"lost": 1}, "Progress writes lost"),
        ({"harmed": 1}, "Progress writes lost"),
        ({"calls": {"get Job": 1}}, "Requests by the operator meanwhile"),
        ({"cpu": {"operator": 13.0, "floor": 10.0}}, "Processor time meanwhile / floor"),
    ],
)
def test_what_is_missed_at_a_lower_rate_is_missed(what: dict[str, Any], missed: str) -> None:
    for seconds in (120.0, 252.0):
        assert met(found(seconds=seconds, **what))[missed] is False


def test_an_older_file_asked_for_100_a_second() -> None:
    raw = found()
    del raw["progress"][0]["rate"]
    assert "Progress writes, 100/s asked" in met(raw)


def test_the_table_says_which() -> None:
    text = verdict.table(verdict.document(found(seconds=252.0, lost=1)))
    lines = {line[:52].strip(): line for line in text.splitlines()}
    assert lines["Progress writes, 100/s asked"].endswith("MISSED")
    assert lines["Progress writes lost"].endswith("MISSED")
    assert lines["Requests by the operator meanwhile"].endswith("NOT SHOWN")
    assert not lines["Resident memory / floor"].rstrip().endswith(("MISSED", "SHOWN"))


def test_where_the_processor_time_goes() -> None:
    rows = {row["process"]: row for row in verdict.document(found())["progress_processor"]}
    assert rows["kube-apiserver"]["per_write_ms"] == 10


def test_what_holds_a_target_names_a_target() -> None:
    known = set(met(found()))
    assert {what for what in HELD if not any(name.startswith(what) for name in known)} == set()


def test_every_target_that_is_not_met_says_what_holds_it() -> None:
    slow = verdict.document(found(seconds=252.0))
    told = {row["what"]: row["why"] for row in missed(slow)}
    assert told.keys() == {"Progress writes, 100/s asked", *ABOUT_PROGRESS}
    assert "API server" in told["Progress writes, 100/s asked"]
    assert {told[name] for name in ABOUT_PROGRESS} == {NOT_ASKED}
    (lost,) = missed(verdict.document(found(lost=1)))
    assert lost == {"what": "Progress writes lost", "why": UNKNOWN}
