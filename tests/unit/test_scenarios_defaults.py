"""Runs under the defaults of installation and namespace: what they get, what they wait for, and what stays."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.names import ANNOTATION_RETRY, DEFAULTS_CONFIG_MAP, ConditionType, ExitCode, Reason
from gemmatune_api.placement import Toleration
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings
from tests.support.play import NAME, NAMESPACE, SPEC, Moody, Play

OPEN = {name: block for name, block in SPEC.items() if name != "output"}
"""The usual spec, without where its results go."""
SITE = Settings(
    defaults=SiteDefaults(output_prefix="gs://site/runs", service_account_name="tuner", model_cache="gs://site/models")
)
TOLERATION = {"key": "dedicated", "operator": "Equal", "value": "tuning", "effect": "NoSchedule"}


@pytest.fixture(params=[True, False], ids=["by the watches", "all live"])
def play(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(Play, "watching", request.param)
    found = Play(OPEN)
    found.settings = SITE
    return found


def give(play: Play, **data: str) -> None:
    """Writes the namespace's ConfigMap anew."""
    found = play.store.get("ConfigMap", NAMESPACE, DEFAULTS_CONFIG_MAP)
    if found is not None:
        play.store.remove("ConfigMap", NAMESPACE, DEFAULTS_CONFIG_MAP)
    meta = {"name": DEFAULTS_CONFIG_MAP, "namespace": NAMESPACE}
    play.store.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})


def config(play: Play, job: str) -> RunConfig:
    (container,) = pod(play, job)["containers"]
    return RunConfig.from_env(next(item["value"] for item in container["env"] if item["name"] == names.ENV_RUN))


def pod(play: Play, job: str) -> Object:
    found: Object = play.job(job)["spec"]["template"]["spec"]
    return found


def resolved(play: Play) -> Any:
    return play.status.resolved


def test_the_installation_s_defaults_reach_job_and_status(play: Play) -> None:
    play.look()
    where = f"gs://site/runs/{NAMESPACE}/{NAME}"
    assert resolved(play)["output"]["uri"] == config(play, "quotes-p1").output.uri == where
    assert resolved(play)["pod"]["serviceAccountName"] == pod(play, "quotes-p1")["serviceAccountName"] == "tuner"
    assert play.status.defaults == SITE.defaults
    assert config(play, "quotes-p1").model.cache == "gs://site/models"
    bindings = [binding["metadata"]["name"] for binding in play.store.list("RoleBinding", NAMESPACE)]
    assert any("tuner" in name for name in bindings), "the named account may report"


def test_a_namespace_overrides_single_ones(play: Play) -> None:
    give(play, outputPrefix="gs://team", secretRef="{name: team-token}")
    play.look()
    assert resolved(play)["output"]["uri"] == f"gs://team/{NAMESPACE}/{NAME}"
    assert resolved(play)["model"]["secretRef"] == {"name": "team-token"}
    assert resolved(play)["pod"]["serviceAccountName"] == "tuner"


def test_later_changes_reach_no_run_that_has_begun(play: Play) -> None:
    give(play, outputPrefix="gs://team")
    play.look()
    before = config(play, "quotes-p1")
    play.settings = Settings(defaults=SiteDefaults(output_prefix="gs://elsewhere", priority_class_name="high"))
    give(play, outputPrefix="no URI at all", unknown="x")
    play.training()
    play.ends("quotes-t1", ExitCode.CRASHED)
    play.wait(600)
    first, second = config(play, "quotes-t1"), config(play, "quotes-t2")
    assert first.model_copy(update={"attempt": 2}) == second, "all attempts are told the same"
    assert first.output == before.output
    assert first.model == before.model
    assert first.model.cache == "gs://site/models"
    assert "priorityClassName" not in pod(play, "quotes-t2")
    assert play.status.defaults is not None
    assert play.status.defaults.output_prefix == "gs://team"


@pytest.mark.parametrize("asked", [OPEN, SPEC], ids=["a default output", "its own output"])
def test_a_crash_before_the_first_job_changes_no_default(play: Play, asked: Object) -> None:
    """The defaults are recorded before a Job is made by them, and the next process goes by the record."""
    play.store.write_spec(names.KIND, NAMESPACE, NAME, asked)
    steady = play.cluster
    crash = Moody(steady, lambda name: SystemError("the process dies") if name == "create" else None)
    play.cluster = crash  # type: ignore[assignment]
    with pytest.raises(SystemError):
        play.look()
    assert play.jobs() == []
    assert play.status.defaults == SITE.defaults
    play.restart()
    play.settings = Settings(defaults=SiteDefaults(output_prefix="gs://elsewhere"))
    play.look()
    where = f"gs://site/runs/{NAMESPACE}/{NAME}" if asked is OPEN else SPEC["output"]["uri"]
    assert config(play, "quotes-p1").output.uri == where
    assert pod(play, "quotes-p1")["serviceAccountName"] == "tuner"


def test_a_wrong_config_map_is_waited_for_and_loses_nothing(play: Play) -> None:
    give(play, outputPrefix="s3://team")
    status = play.look()
    assert (status.phase, status.reason) == ("Pending", Reason.INVALID_DEFAULTS)
    assert 'ConfigMap gemmatune-defaults, outputPrefix: must be a gs:// or file:/// URI (found "s3://team")' in (
        status.message
    )
    assert status.remedy == "Write a URI such as gs://my-bucket/quotes."
    assert play.condition(ConditionType.FAILED) is None
    assert play.jobs() == []
    assert play.wake is not None
    give(play, outputPrefix="gs://team")
    assert play.wait(10).phase == "Preparing", "it goes on by itself"
    assert resolved(play)["output"]["uri"] == f"gs://team/{NAMESPACE}/{NAME}"


def test_without_a_prefix_anywhere_the_spec_is_refused_and_tried_again_on_demand(play: Play) -> None:
    play.settings = Settings()
    status = play.look()
    assert (status.phase, status.reason) == ("Failed", Reason.INVALID_SPEC)
    assert "spec.output.uri: is required" in status.message
    give(play, outputPrefix="gs://team")
    play.store.write_spec(names.KIND, NAMESPACE, NAME, OPEN, {ANNOTATION_RETRY: "1"})
    assert play.look().phase == "Preparing"


def test_a_retry_before_the_first_attempt_takes_the_defaults_of_today(play: Play) -> None:
    play.look()
    play.ends("quotes-p1", ExitCode.ACCESS_DENIED)
    assert play.status.phase == "Failed"
    give(play, serviceAccountName="other")
    assert play.wait(600).phase == "Failed", "by itself nothing starts again"
    assert resolved(play)["pod"]["serviceAccountName"] == "tuner"
    play.store.write_spec(names.KIND, NAMESPACE, NAME, OPEN, {ANNOTATION_RETRY: "1"})
    assert play.look().phase == "Preparing"
    assert pod(play, "quotes-p2")["serviceAccountName"] == "other"
    assert resolved(play)["pod"]["serviceAccountName"] == "other"


def test_a_default_output_that_another_run_has(play: Play) -> None:
    other = Play({**SPEC, "output": {"uri": f"gs://site/runs/{NAMESPACE}/{NAME}"}}, name="other", store=play.store)
    other.look()
    assert play.look().reason == Reason.OUTPUT_IN_USE


def test_the_installation_s_tolerations_are_on_every_job() -> None:
    play = Play({**SPEC, "output": {**SPEC["output"], "merge": True}})
    gpu = Toleration(key="nvidia.com/gpu", operator="Exists")
    play.settings = Settings(tolerations=(Toleration.model_validate(TOLERATION), gpu))
    play.training()
    play.ends("quotes-t1", 0, {"manifest": "gs://bucket/quotes/manifest.json"})
    for job in ("quotes-p1", "quotes-t1", "quotes-m1"):
        found = pod(play, job)["tolerations"]
        assert TOLERATION in found, job
        assert sum(item.get("key") == "nvidia.com/gpu" for item in found) == (job == "quotes-t1"), job
