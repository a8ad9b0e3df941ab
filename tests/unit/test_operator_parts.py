"""Small parts of the operator: conditions, events, what a handler lets through, options and metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Condition, FineTuneStatus
from gemmatune_operator import conditions, events, handlers, options
from gemmatune_operator.board import Board
from gemmatune_operator.cache import Cache
from gemmatune_operator.metrics import Gauges, Metrics
from gemmatune_operator.observe import of_resource, status_of, with_jobs
from gemmatune_operator.reconcile import operator_fields
from tests.support.situations import NOW, UID, resource

C = ConditionType


# --- conditions ---


def test_transition_time_moves_with_the_status_only() -> None:
    first = conditions.put([], C.PREPARED, False, Reason.PREPARING, "a", 1, NOW)
    later = NOW + timedelta(minutes=1)
    same = conditions.put(first, C.PREPARED, False, Reason.IMAGE_PULL_FAILED, "b", 2, later)
    assert same[0].last_transition_time == conditions.rfc3339(NOW)
    assert (same[0].reason, same[0].message, same[0].observed_generation) == ("ImagePullFailed", "b", 2)
    other = conditions.put(same, C.PREPARED, True, Reason.PREPARED, "c", 2, later)
    assert other[0].last_transition_time == conditions.rfc3339(later)


def test_conditions_keep_their_order_and_strangers() -> None:
    found = [Condition(type="Stranger", status="True")]
    for kind in reversed(list(C)):
        found = conditions.put(found, kind, True, Reason.VALID, "", 1, NOW)
    assert [item.type for item in found] == [*(kind.value for kind in C), "Stranger"]


def test_long_messages_are_cut() -> None:
    found = conditions.put([], C.FAILED, True, Reason.CRASHED, "x" * 10_000, 1, NOW)
    assert len(found[0].message) == conditions.MESSAGE_CHARACTERS


def test_times_are_utc() -> None:
    moment = datetime(2026, 3, 1, 13, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))
    assert conditions.rfc3339(moment) == "2026-03-01T12:00:00Z"
    assert conditions.parse_time("2026-03-01T12:00:00Z") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    for nothing in (None, "", "soon"):
        assert conditions.parse_time(nothing) is None


# --- events ---


def status(*found: tuple[C, bool, Reason, str]) -> FineTuneStatus:
    made: list[Condition] = []
    for kind, value, reason, message in found:
        made = conditions.put(made, kind, value, reason, message, 1, NOW)
    return FineTuneStatus(conditions=made)


def told(before: FineTuneStatus, after: FineTuneStatus) -> list[tuple[str, str]]:
    return [(event.type, event.reason) for event in events.transitions(before, after)]


def test_every_transition_once() -> None:
    nothing = FineTuneStatus()
    accepted = status((C.ACCEPTED, True, Reason.VALID, "fits"))
    assert told(nothing, accepted) == [("Normal", "Valid")]
    assert told(accepted, accepted) == []
    reworded = status((C.ACCEPTED, True, Reason.VALID, "fits well"))
    assert told(accepted, reworded) == [], "a new wording is no transition"
    waiting = status((C.ACCEPTED, True, Reason.VALID, "fits"), (C.PREPARED, False, Reason.SECRET_MISSING, "no token"))
    assert told(accepted, waiting) == [("Warning", "SecretMissing")]


def test_an_end_is_told_once() -> None:
    failed = status(
        (C.TRAINING, False, Reason.CRASHED, "it crashed"),
        (C.FAILED, True, Reason.CRASHED, "it crashed"),
        (C.FINISHED, True, Reason.CRASHED, "it crashed"),
    )
    assert told(FineTuneStatus(), failed) == [("Warning", "Crashed")]
    retrying = status((C.TRAINING, False, Reason.RETRYING, "again"), (C.PROVISIONED, False, Reason.RETRYING, "again"))
    assert told(FineTuneStatus(), retrying) == [("Warning", "Retrying")]


def test_every_reason_has_a_kind() -> None:
    for reason in Reason:
        (event,) = events.transitions(FineTuneStatus(), status((C.TRAINING, False, reason, "x" * 5000)))
        assert event.type in ("Normal", "Warning")
        assert len(event.message) == 1024


def test_a_message_is_cut_by_bytes() -> None:
    """The API server counts bytes: 600 Chinese characters are 1,800 of them."""
    for text in ("引" * 600, "x" + "é" * 600, "x" * 1025):
        cut = events.shortened(text)
        assert len(cut.encode()) <= 1024
        assert cut.endswith("...")
        assert text.startswith(cut.removesuffix("..."))
    assert events.shortened("x" * 1024) == "x" * 1024


# --- the status that is written ---


def test_the_trainers_fields_are_never_written() -> None:
    stored = {
        "phase": "Training",
        "progress": {"step": 3},
        "checkpoint": {"step": 2, "uri": "x"},
        "artifacts": {"adapter": "x"},
        "samples": [{"prompt": "x"}],
        "message": "",
        "attempts": [{"number": 1, "job": "j", "message": ""}],
    }
    assert operator_fields(status_of(stored)) == {
        "phase": "Training",
        "attempts": [{"number": 1, "job": "j", "provisioning": "onDemand"}],
    }


@given(st.dictionaries(st.sampled_from(["phase", "attempts", "plan", "conditions", "counters", "zzz"]), st.text()))
def test_an_odd_status_is_read_as_far_as_possible(stored: dict[str, Any]) -> None:
    found = status_of({**stored, "job": "quotes-t1"})
    assert found.job == "quotes-t1"


def test_only_jobs_of_this_uid_are_the_runs() -> None:
    def made(name: str, owner: str) -> dict[str, Any]:
        owners = [{"kind": "GemmaFineTune", "uid": owner, "controller": True}]
        return {"metadata": {"name": name, "ownerReferences": owners}}

    observed = with_jobs(of_resource(resource()), [made("quotes-t1", UID), made("quotes-t2", "other")], [])
    assert list(observed.jobs) == ["quotes-t1"]


# --- handlers ---


@pytest.mark.parametrize(
    ("kind", "name", "reason", "run"),
    [
        ("Job", "quotes-t1", "FailedCreate", "quotes"),
        ("Pod", "quotes-p12-x7k2p", "FailedMount", "quotes"),
        ("Pod", "quotes-t1-0-x7k2p", "FailedScaleUp", "quotes"),
        ("Job", "quotes-t1-t1", "FailedCreate", None),  # of a run quotes-t1, which is not ours
        ("Pod", "quotes-t1-t2456", "FailedMount", "quotes"),
        ("Job", "quotes-t1", "SomethingElse", None),
        ("Job", "others-t1", "FailedCreate", None),
        ("Node", "quotes-t1", "FailedCreate", None),
        ("Job", "quotes", "FailedCreate", None),
    ],
)
def test_events_wake_the_run_that_they_tell_of(kind: str, name: str, reason: str, run: str | None) -> None:
    cache = Cache()
    cache.resource("ADDED", resource())
    about = {"kind": kind, "name": name, "namespace": "team"}
    woken = cache.event({"reason": reason, "involvedObject": about})
    assert [key for key, _ in woken] == ([("team", run)] if run else [])


def test_handlers_only_enqueue() -> None:
    """Four watched kinds, and kopf leaves nothing on the objects: no create, update or delete handlers."""
    registry = handlers.registry(lambda key, priority: None, Cache())
    watching = registry._watching.get_all_handlers()
    assert {handler.fn.__name__ for handler in watching} == {
        "on_resource",
        "on_job",
        "on_pod",
        "on_warning",
        "on_scaling",
    }
    for part in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert list(part.get_all_handlers()) == []
    found = handlers.settings()
    assert found.scanning.disabled
    assert not found.posting.enabled


async def test_a_list_is_told() -> None:
    """kopf lists anew where a watch has missed something; its objects are given without a type."""
    told: list[str] = []
    woken: list[Any] = []
    registry = handlers.registry(lambda key, priority: woken.append(key), Cache(), lambda: told.append("listed"))
    take = {handler.fn.__name__: handler.fn for handler in registry._watching.get_all_handlers()}["on_resource"]
    await take(event={"type": "ADDED", "object": resource()})
    assert (told, woken) == ([], [("team", "quotes")])
    await take(event={"type": None, "object": resource()})
    assert told == ["listed"]


# --- options ---


def test_defaults() -> None:
    found = options.read([], {})
    assert (found.namespaces, found.port, found.settings.prices) == ((), 8080, {})


def test_arguments_win_over_the_environment(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("nvidia-l4: 0.7\n")
    environment = {"GEMMATUNE_OPERATOR_TRAINER_IMAGE": "a:1", "GEMMATUNE_OPERATOR_WORKERS": "3"}
    arguments = [
        "--trainer-image=b:2", "--namespaces=x,y", f"--prices={prices}", "--trainer-env=A=1,B=x=y", "--host-memory=4Gi"
    ]  # fmt: skip
    found = options.read(arguments, environment)
    assert (found.settings.image, found.workers, found.namespaces) == ("b:2", 3, ("x", "y"))
    assert found.settings.prices == {"nvidia-l4": 0.7}
    assert found.settings.trainer_env == {"A": "1", "B": "x=y"}
    assert found.settings.host_memory == 4 * 2**30


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer-env=A"],
        ["--prices=/nowhere"],
        ["--defaults=/nowhere"],
        ['--trainer-tolerations=[{"keys": "a"}]'],
        ["--trainer-tolerations=dedicated"],
        ["--host-memory=much"],
        ["--workers=many"],
        ["--workers=0"],
        ["--port=65536"],
        ["--resync=0"],
        ["--resync=soon"],
        ["--log-format=xml"],
        ["--traces-endpoint=collector:4318"],
        ["--traces-share=1.5"],
        ["--surprise"],
    ],
)
def test_wrong_arguments_end_with_a_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.read(arguments, {})
    assert ended.value.code == 2
    assert arguments[0].split("=")[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_variable_of_the_environment_ends_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.read([], {"GEMMATUNE_OPERATOR_PORT": "http"})
    assert "--port: must be a whole number from 0 to 65535 (found 'http')" in capsys.readouterr().err


def test_an_operator_elsewhere_is_read_with_its_own_files() -> None:
    files = {"/etc/d.yaml": "serviceAccountName: tuner\n", "/etc/p.yaml": "nvidia-l4: 0.7\n"}
    arguments = ["--defaults=/etc/d.yaml", "--prices=/etc/p.yaml", "--of-a-newer-one=1", "--leader-elect"]
    environment = {"GEMMATUNE_OPERATOR_NAMESPACES": "a,b"}
    settings, namespaces = options.elsewhere(arguments, environment, files.__getitem__)
    assert (settings.defaults.service_account_name, settings.prices) == ("tuner", {"nvidia-l4": 0.7})
    assert namespaces == ("a", "b")


@pytest.mark.parametrize(
    "wrong", ["--workers=many", "--trainer-env=A", "--trainer-tolerations=dedicated", "--trainer=ambiguous"]
)
def test_wrong_arguments_of_an_operator_elsewhere_end_no_process(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0]):
        options.elsewhere([wrong], {}, str)


def test_defaults_and_tolerations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "defaults.yaml"
    file.write_text("outputPrefix: gs://runs\n")
    tolerations = '--trainer-tolerations=[{"key": "dedicated", "operator": "Exists"}]'
    settings = options.read([f"--defaults={file}", tolerations], {}).settings
    assert settings.defaults.output_prefix == "gs://runs"
    assert [item.key for item in settings.tolerations] == ["dedicated"]
    file.write_text("outputPrefix: s3://runs\n")
    with pytest.raises(SystemExit):
        options.read([f"--defaults={file}"], {})
    assert "outputPrefix: must be a gs:// or file:/// URI" in capsys.readouterr().err


def test_prices_must_be_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("nvidia-l4: cheap\n")
    with pytest.raises(SystemExit):
        options.read([f"--prices={prices}"], {})
    assert "price per hour" in capsys.readouterr().err


# --- metrics ---


def test_metrics() -> None:
    gauges = Gauges(
        depth=lambda: 4, oldest=lambda: 1.5, leader=lambda: 1, phases=lambda: {"Training": 2}, board=Board(list)
    )
    metrics = Metrics(gauges)
    metrics.request("create", "Job", 201, 0.01)
    metrics.request("create", "Job", 0, 30.0)
    metrics.worked(0.5, True)
    metrics.picked(0.1)
    text = metrics.text().decode()
    assert 'gemmatune_api_requests_total{code="0",kind="Job",verb="create"} 1.0' in text
    assert 'gemmatune_reconciles_total{outcome="error"} 1.0' in text
    metrics.attempt_ended("team", "Preempted", "nvidia-l4", 30.0, 1.5)
    metrics.attempt_ended("team", "Preempted", "nvidia-l4", 12.0, 0.5)
    text = metrics.text().decode()
    for line in (
        "gemmatune_queue_depth 4.0",
        "gemmatune_queue_oldest_seconds 1.5",
        "gemmatune_leader 1.0",
        'gemmatune_runs{phase="Training"} 2.0',
        'gemmatune_attempts_ended_total{cause="Preempted"} 2.0',
        'gemmatune_accelerator_seconds_total{outcome="Preempted",type="nvidia-l4"} 42.0',
        'gemmatune_attempts_ended_total{cause="Stalled"} 0.0',
        'gemmatune_namespace_accelerator_seconds_total{run_namespace="team"} 42.0',
        'gemmatune_namespace_cost_total{run_namespace="team"} 2.0',
    ):
        assert f"{line}\n" in text
