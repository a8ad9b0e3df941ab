"""gft and an API server that refuses the login, forbids or says nothing: sentences with a remedy, and always an end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_cli import logs, outage, remote
from tests.support.oddapi import Answer, refusal
from tests.support.oddgft import LISTS, gft, healthy, run
from tests.support.resources import resource

COMMANDS = (
    ("top", "--once"),
    ("watch", "quotes"),
    ("wait", "quotes"),
    ("logs", "quotes"),
    ("logs", "quotes", "--follow"),
    ("suspend", "quotes"),
    ("resume", "quotes"),
    ("retry", "quotes"),
    ("doctor",),
    ("samples", "quotes"),
    ("report", "quotes"),
    ("compare", "quotes", "others"),
    ("serve-command", "quotes"),
)
"""Every command that asks a cluster."""
UNAUTHORIZED = refusal(401, "Unauthorized", "Unauthorized")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_login_that_has_expired(command: tuple[str, ...], serve: Any) -> None:
    with serve(lambda method, path: UNAUTHORIZED):
        done = gft(*command)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "error: the API server does not take your login: Unauthorized"
    assert "Log in again" in done.stderr


def test_a_login_that_expires_on_the_way(serve: Any) -> None:
    """Each request of doctor, and a pod's log, may be the one that is refused."""
    pod = {
        "metadata": {"name": "quotes-t1-abcde", "uid": "p", "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"containers": [{"name": "trainer"}]},
        "status": {"phase": "Running"},
    }

    def log(method: str, path: str) -> Answer:
        if "/log?" in path:
            return UNAUTHORIZED
        return (200, {"items": [pod]}) if "/pods" in path else (200, run("Training"))

    with serve(log) as api:
        done = gft("logs", "quotes")
        assert any("/log?" in path for path in api.asked)
    assert (done.exit_code, "Log in again" in done.stderr) == (1, True), done.stderr
    for refused in LISTS:
        with serve(lambda method, path, at=refused: UNAUTHORIZED if at in path else healthy(method, path)):
            done = gft("doctor")
        assert (done.exit_code, "Log in again" in done.stderr) == (1, True), (refused, done.output)


@pytest.mark.parametrize(
    ("status", "output"),
    [
        ({}, "problem"),
        (
            {
                "phase": "Failed",
                "prepare": {"number": 2, "job": "quotes-p2"},
                "defaults": {"outputPrefix": "gs://old"},
            },
            "problem",
        ),
        (
            {
                "phase": "Failed",
                "prepare": {"number": 2, "job": "quotes-p2"},
                "attempts": [{"number": 3, "job": "quotes-t3"}],
                "defaults": {"outputPrefix": "gs://old"},
            },
            "",
        ),
    ],
    ids=["new", "before its first attempt", "begun"],
)
def test_doctor_takes_a_run_that_the_cluster_knows(
    status: dict[str, Any], output: str, serve: Any, tmp_path: Path
) -> None:
    """It keeps the defaults that it began with, and else gets those of today: here none."""
    file = tmp_path / "quotes.json"
    file.write_text(json.dumps({**resource(changes={"spec.output": None}), "status": status}))
    deployment = {
        "metadata": {"name": "o", "namespace": "o"},
        "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [{"name": "operator"}]}}},
        "status": {"readyReplicas": 1},
    }

    def answer(method: str, path: str) -> Answer:
        return (200, {"items": [deployment]}) if "deployments" in path else healthy(method, path)

    with serve(answer):
        done = gft("doctor", str(file), "--no-pod")
    assert done.exit_code == (1 if output else 0), done.output
    assert ("spec.output.uri is required, since no default gives a prefix" in done.stdout) == bool(output)
    assert "hf-token has HF_TOKEN" in done.stdout


def test_an_operator_of_another_version_is_no_problem_of_the_run(serve: Any, tmp_path: Path) -> None:
    container = {"name": "operator", "args": ["--trainer-tolerations=of another shape"]}
    deployment = {
        "metadata": {"name": "o", "namespace": "o"},
        "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [container]}}},
        "status": {"readyReplicas": 1},
    }
    with serve(lambda method, path: (200, {"items": [deployment]}) if "deployments" in path else healthy(method, path)):
        done = gft("doctor")
    assert done.exit_code == 0, done.output
    assert (
        "unknown  operator        the arguments of Deployment o/o cannot be read: --trainer-tolerations" in done.stdout
    )
    assert "unknown  defaults" in done.stdout


RBAC = (
    'gemmafinetunes.gemmatune.dev "quotes" is forbidden: User "{}" cannot {} resource "gemmafinetunes" in API group '
    '"gemmatune.dev" in the namespace "team"'
)


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (
            "gemmafinetunes.gemmatune.dev \"quotes\" is forbidden: ValidatingAdmissionPolicy 'freeze' with binding "
            "'freeze' denied request: no changes until Monday\x1b[31m",
            "It is no right that is missing: do what the message asks",
        ),
        (RBAC.format("ada", "patch"), "Ask for a Role with the verb patch for gemmafinetunes."),
        (RBAC.format("system:anonymous", "patch"), "Log in again"),
    ],
)
def test_what_forbids_speaks_for_itself(message: str, remedy: str, serve: Any) -> None:
    def answer(method: str, path: str) -> Answer:
        return refusal(403, "Forbidden", message) if method == "PATCH" else (200, run("Training"))

    with serve(answer):
        done = gft("suspend", "quotes")
    assert done.exit_code == 1
    assert f"GemmaFineTune team/quotes may not be changed: {message.partition(chr(27))[0]}" in done.stderr
    assert remedy in done.stderr
    assert "\x1b[31m" not in done.stderr


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(remote, "LATE_SECONDS", 1)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_api_server_that_says_nothing(command: tuple[str, ...], serve: Any) -> None:
    with serve(lambda method, path: None) as api:
        done = gft(*command)
        assert len(api.asked) == 1, "what was not answered is not asked again in silence"
    assert done.exit_code == 1
    assert done.stderr.startswith("error: the API server does not answer: ")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("silence", [None, (200, None)], ids=["before an answer", "within it"])
def test_a_wait_ends_where_the_watch_falls_silent(silence: Answer, serve: Any) -> None:
    training = run("Training", message="Attempt 1 trains.")
    with serve(lambda method, path: silence if "watch=true" in path else (200, training)) as api:
        start = time.monotonic()
        done = gft("wait", "quotes", "--timeout", "3s")
        assert time.monotonic() - start < 30
        assert [path for path in api.asked if "watch=true" not in path][1:], "it has looked anew"
    assert done.exit_code == 2
    assert "has not ended within 3s: it is Training. Attempt 1 trains." in done.stderr


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("silence", [None, (200, None)], ids=["before an answer", "within it"])
def test_a_watch_that_falls_silent_hides_no_end(silence: Answer, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WATCH_SECONDS", 1)
    answers = [run("Training"), run("Succeeded", message="It is written.")]

    def answer(method: str, path: str) -> Answer:
        if "watch=true" in path:
            return silence
        return 200, answers.pop(0) if len(answers) > 1 else answers[0]

    with serve(answer):
        done = gft("wait", "quotes")
    assert (done.exit_code, "It is written." in done.stdout) == (0, True)


@pytest.mark.usefixtures("hasty")
def test_an_api_server_that_falls_silent_for_good(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [run("Training")]
    with serve(lambda method, path: (200, first.pop()) if first else None):
        assert gft("wait", "quotes", "--timeout", "3s").exit_code == 2
    first = [run("Training")]
    monkeypatch.setattr(outage, "OUTAGE_SECONDS", 1)
    monkeypatch.setattr(remote, "WATCH_SECONDS", 1)
    with serve(lambda method, path: (200, first.pop()) if first else None):
        done = gft("wait", "quotes")
    assert (done.exit_code, "does not answer" in done.stderr) == (1, True)


ENDED = {"observedGeneration": 1, "reason": "DataInvalid", "message": "Row 7 is empty."}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (run("Failed", **ENDED), 1),
        (run("Failed", generation=2, **ENDED), 2),
        (run("Succeeded", generation=2, **ENDED), 0),
        ({**run("Failed", **ENDED), "retry": "b"}, 2),
        ({**run("Failed", **ENDED, observedRetry="a"), "retry": "b"}, 2),
        ({**run("Failed", **ENDED, observedRetry="b"), "retry": "b"}, 1),
        ({**run("Failed", **ENDED), "retry": ""}, 1),
    ],
    ids=["failed", "corrected", "succeeded", "retried", "retried again", "failed again", "nothing asked"],
)
def test_a_failure_that_is_corrected_or_tried_again_is_no_end(found: dict[str, Any], code: int, serve: Any) -> None:
    found = json.loads(json.dumps(found))
    if (retry := found.pop("retry", None)) is not None:
        found["metadata"]["annotations"] = {names.ANNOTATION_RETRY: retry}
    with serve(lambda method, path: (200, {"items": []} if "/pods" in path or "watch=true" in path else found)):
        done = gft("wait", "quotes", "--timeout", "1s")
        assert done.exit_code == code, done.output
        assert ("no operator has looked at the correction or the retry yet" in done.stderr) == (code == 2)
        suspended = gft("suspend", "quotes")
        assert ("has ended" in suspended.stderr) == (code != 2)


def test_a_log_is_followed_over_a_retry(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "PAUSE_SECONDS", 0.01)
    retried = run("Failed", **ENDED)
    retried["metadata"]["annotations"] = {names.ANNOTATION_RETRY: "b"}
    answers = [retried, retried, retried, run("Succeeded")]

    def answer(method: str, path: str) -> Answer:
        if "/pods" in path:
            return 200, {"items": []}
        return 200, answers.pop(0) if len(answers) > 1 else answers[0]

    with serve(answer):
        assert gft("logs", "quotes", "--follow").exit_code == 0
    assert answers == [run("Succeeded")], "it has asked until the run had ended for good"
