"""An API server that is away while a run is followed: its time counts from the first failure, not the last change."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from gemmatune_cli import logs, outage, remote, wait
from tests.support.oddapi import Answer, refusal
from tests.support.oddgft import gft, run

AWAY = refusal(503, "ServiceUnavailable", "apiserver is shutting down")
POD = {
    "metadata": {"name": "quotes-t1-abcde", "uid": "p", "creationTimestamp": "2026-01-02T03:04:05Z"},
    "spec": {"containers": [{"name": "trainer"}]},
    "status": {"phase": "Running"},
}


class Clock:
    """A clock that only the test moves, and that sleeps in no time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    modules: tuple[ModuleType, ...] = (remote, outage, logs, wait)
    for module in modules:
        monkeypatch.setattr(module, "time", found)
    return found


@pytest.mark.parametrize("command", ["watch", "wait"])
@pytest.mark.parametrize("quiet", [100, 290, 300])
@pytest.mark.parametrize(("lasts", "code"), [(280, 0), (320, 1)])
def test_a_run_on_which_nothing_happened_before(
    command: str, quiet: int, lasts: int, code: int, serve: Any, clock: Clock
) -> None:
    until = 0.0

    def answer(method: str, path: str) -> Answer:
        nonlocal until
        if "watch=true" in path:
            clock.now += quiet
            until = clock.now + lasts
            return 200, {}
        if not until:
            return 200, run("Queued")
        return AWAY if clock.now < until else (200, run("Succeeded", message="It is written."))

    with serve(answer):
        done = gft(command, "quotes")
    assert done.exit_code == code, done.output
    assert ("the API server answered 503 apiserver is shutting down" in done.stderr) == bool(code)


def test_each_outage_has_its_own_time(serve: Any, clock: Clock) -> None:
    until, outages = 0.0, 0

    def answer(method: str, path: str) -> Answer:
        nonlocal until, outages
        if "watch=true" in path:
            outages += 1
            until = clock.now + 200
            return 200, {}
        if clock.now < until:
            return AWAY
        return 200, run("Succeeded" if outages == 3 else "Queued")

    with serve(answer):
        assert gft("watch", "quotes").exit_code == 0
    assert outages == 3


@pytest.mark.parametrize("missed", ["/gemmafinetunes/", "/pods"])
@pytest.mark.parametrize(("lasts", "code"), [(280, 0), (320, 1)])
def test_a_log_that_is_followed(missed: str, lasts: int, code: int, serve: Any, clock: Clock) -> None:
    until, asked = 0.0, 0

    def answer(method: str, path: str) -> Answer:
        nonlocal until, asked
        if missed in path:
            asked += 1
            if asked == 3:
                until = clock.now + lasts
            if clock.now < until:
                return AWAY
        if "/pods" in path:
            return 200, {"items": []}
        return 200, run("Succeeded" if until else "Queued")

    with serve(answer):
        done = gft("logs", "quotes", "--follow")
    assert done.exit_code == code, done.output
    assert ("the API server answered 503 apiserver is shutting down" in done.stderr) == bool(code)


def test_a_refusal_is_no_outage(serve: Any, clock: Clock) -> None:
    answers = [(200, run("Training"))] * 3

    def answer(method: str, path: str) -> Answer:
        if "/pods" in path:
            return 200, {"items": []}
        return answers.pop() if answers else refusal(401, "Unauthorized", "Unauthorized")

    with serve(answer):
        done = gft("logs", "quotes", "--follow")
    assert (done.exit_code, "does not take your login" in done.stderr) == (1, True)
    assert clock.now < 1010


@pytest.mark.parametrize("breaks", [AWAY, (200, None)], ids=["overloaded", "broken"])
def test_a_log_goes_on_after_an_outage(
    breaks: Answer, serve: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the connection breaks before its first line: all of it is still to come."""
    monkeypatch.setattr(logs, "FOLLOWED_SECONDS", 1)
    until = 0.0
    logs_asked: list[str] = []

    def answer(method: str, path: str) -> Answer:
        nonlocal until
        if "/log?" in path:
            logs_asked.append(path)
            if not until:
                until = clock.now + 200
                return breaks
            return 200, {"step": 7}
        if clock.now < until:
            return AWAY
        if "/pods" in path:
            return 200, {"items": [POD]}
        return 200, run("Succeeded" if len(logs_asked) > 1 else "Training")

    with serve(answer):
        done = gft("logs", "quotes", "--follow")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == '{"step": 7}'
    assert "no more of it can be read" not in done.stdout
    assert not any("sinceSeconds" in path for path in logs_asked)


def test_a_pod_whose_log_is_never_given_holds_nothing_up_for_ever(serve: Any, clock: Clock) -> None:
    start = clock.now

    def answer(method: str, path: str) -> Answer:
        if "/log?" in path:
            return AWAY
        if "/pods" in path:
            return 200, {"items": [POD]}
        return 200, run("Succeeded")

    with serve(answer):
        done = gft("logs", "quotes", "--follow")
    assert (done.exit_code, "no more of it can be read: apiserver is shutting down" in done.stdout) == (0, True)
    assert 300 < clock.now - start < 320
