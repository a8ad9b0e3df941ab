"""Runs that a former release left midway go on under today's trainer and today's operator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemmatune_api.names import ENV_RUN, ExitCode, Reason
from gemmatune_api.runconfig import RUN_CONFIG_VERSION
from tests.data.release import BACKENDS, BUCKET, Release, releases, version
from tests.support.fakegcs import FakeGcs
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.support.upgrade import goes_on


@pytest.fixture(params=releases("torch"), ids=lambda release: release.folder.parent.name)
def former(request: pytest.FixtureRequest) -> Release:
    found: Release = request.param
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_this_release_has_stored_a_run(backend: str) -> None:
    assert version() in [release.facts["version"] for release in releases(backend)], "run `make release-state`"


@pytest.mark.parametrize("operator", ["then", "now"])
def test_the_next_attempt_goes_on_from_a_former_checkpoint(
    former: Release, operator: str, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """By the RunConfig that the former operator wrote, and by the one that today's makes of the same resource."""

    def start(env: dict[str, str], folder: Path) -> TrainerProcess:
        run = trainer_host.run("train", env[ENV_RUN], folder, env)
        assert run.poll() == ExitCode.DONE, run.log()
        return run

    goes_on(former, operator, start, tmp_path)


def test_a_preparation_of_today_finds_the_former_rows(
    former: Release, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """Else a run that is prepared again would be refused its own output."""
    with FakeGcs() as gcs:
        former.upload(gcs)
        before = gcs.names(BUCKET)
        env = former.environment("p1", gcs, tmp_path / "cache")
        run = trainer_host.run("prepare", env[ENV_RUN], tmp_path / "run", env)
        assert run.poll() == ExitCode.DONE, run.log()
        assert len(run.events("prepared rows found")) == 1
        assert gcs.names(BUCKET) == before


@pytest.mark.parametrize("change", ["version", "field"])
def test_a_newer_configuration_is_refused_with_what_to_do(
    former: Release, change: str, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """An operator that was upgraded, and an image that was not: pod.image names one of its own, or a value was kept."""
    config = json.loads(former.told("t2")[ENV_RUN])
    if change == "version":
        config["version"] = RUN_CONFIG_VERSION + 1
        said = f"GEMMATUNE_RUN has version {RUN_CONFIG_VERSION + 1}, this trainer reads up to {RUN_CONFIG_VERSION}"
    else:
        config["training"]["newer"] = 1
        said = "GEMMATUNE_RUN has fields that this trainer does not know: training.newer"
    run = trainer_host.run("train", json.dumps(config), tmp_path / "run")
    assert run.poll() == ExitCode.INVALID_CONFIG, run.log()
    assert run.message.reason == Reason.INVALID_CONFIG
    assert run.message.message == said
    assert run.message.remedy.startswith("Use the trainer's image of the operator's release: correct pod.image")
