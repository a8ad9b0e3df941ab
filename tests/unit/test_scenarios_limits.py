"""Runs on the embedded cluster that reach a limit: time, money, and the time that a finished resource is kept."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_operator.settings import Settings
from tests.support.play import DONE, NAMESPACE, Play, spec

pytestmark = pytest.mark.usefixtures("both_ways")

L4 = {"nvidia-l4": {"onDemand": 3.6, "spot": 1.8}}


def priced(**blocks: Any) -> Play:
    play = Play(spec(**blocks))
    play.settings = Settings(prices=L4)
    return play


def stops(play: Play, job: str, step: int) -> None:
    """The trainer answers SIGTERM as the contract says: it saves a checkpoint, tells of it, and ends with 30."""
    assert play.job(job)["metadata"]["deletionTimestamp"], "the Job is deleted"
    assert play.pod(job)["metadata"]["deletionTimestamp"], "its pod gets SIGTERM"
    assert play.status.phase == "Training", "not over before the checkpoint is saved"
    play.trainer(progress={"step": step}, checkpoint={"step": step, "uri": f"gs://b/step-{step}"})
    play.ends(job, 30, {"message": "stopped", "step": step})
    play.gone(job)


def test_deadline_sums_training_and_resumes_on_demand() -> None:
    play = Play(spec(limits={"deadline": "1h"}))
    play.training()
    play.wait(1800)
    play.ends("quotes-t1", 30)
    play.wait(7200)  # waiting for a node does not count
    play.runs("quotes-t2")
    play.wait(1860 - 60 - 1)  # each played end claims a minute of running before it
    assert play.status.phase == "Training"
    status = play.wait(62)
    assert (status.phase, status.reason) == ("Training", "DeadlineExceeded")
    assert "saves a checkpoint" in status.message
    stops(play, "quotes-t2", 43)
    status = play.status
    assert (status.phase, status.reason) == ("Failed", "DeadlineExceeded")
    assert (status.attempts[-1].to_step, status.attempts[-1].counted) == (43, False)
    assert "The checkpoint of step 43 is saved." in status.message
    assert "limits.deadline" in status.remedy
    assert names.ANNOTATION_RETRY in status.remedy
    assert play.annotate("too early").phase == "Failed", "the limit is still used up"
    assert play.jobs() == ["quotes-p1", "quotes-t1"], "so no node is paid for"
    play.change(lambda spec: spec["limits"].update(deadline="3h"))
    assert play.annotate("1").attempts[-1].job == "quotes-t3"
    assert play.attempt.from_step == 43
    assert play.runs("quotes-t3").phase == "Training"


def test_cost_is_summed_by_mode_and_resumes_on_demand() -> None:
    play = priced(provisioning={"mode": "spot", "fallback": {"afterPreemptions": 1}}, limits={"maxCost": 2.7})
    play.training()
    assert play.attempt.cost_per_hour == 1.8
    play.wait(1800)
    play.ends("quotes-t1", 30)  # 1800 s of spot: 0.9
    assert play.status.timers.spent == 0.9  # type: ignore[union-attr]
    play.wait(9999)
    play.runs("quotes-t2")
    assert (play.attempt.provisioning, play.attempt.cost_per_hour) == ("onDemand", 3.6)
    assert play.wake is not None
    assert play.wake <= 1800  # 1.8 are left
    play.wait(1799)
    assert (play.status.phase, play.wake) == ("Training", pytest.approx(1))
    status = play.wait(1.1)
    assert (status.phase, status.reason) == ("Training", "BudgetExceeded")
    stops(play, "quotes-t2", 60)
    status = play.status
    assert (status.phase, status.reason) == ("Failed", "BudgetExceeded")
    assert status.cost is not None
    assert status.cost.so_far == 2.7
    assert "limits.maxCost" in status.remedy
    play.change(lambda spec: spec["limits"].update(maxCost=10))
    assert play.annotate("1").attempts[-1].from_step == 60
    assert play.runs("quotes-t3").phase == "Training"


def test_the_cost_alone_leads_to_no_write() -> None:
    play = priced(limits={"maxCost": 100})
    play.training()
    before = play.store.version
    play.wait(2000)
    assert play.store.version == before
    play.change(lambda spec: spec["limits"].update(maxCost=99))
    assert play.status.cost.so_far == 2.0  # type: ignore[union-attr]


def test_a_limit_without_prices_is_refused_and_accepted_when_there_are_some() -> None:
    play = Play(spec(limits={"maxCost": 5}))
    status = play.look()
    assert (status.phase, status.reason) == ("Failed", "InvalidSpec")
    assert play.jobs() == []
    play.settings = Settings(prices=L4)
    assert play.annotate("1").phase == "Preparing"


def test_a_run_that_is_about_to_succeed_at_its_deadline_does() -> None:
    play = Play(spec(limits={"deadline": "1h"}))
    play.training()
    assert play.wait(3600).reason == "DeadlineExceeded"
    play.trainer(artifacts={"adapter": "gs://bucket/quotes/adapter", "manifest": "gs://bucket/quotes/manifest.json"})
    assert play.ends("quotes-t1", 0, DONE).phase == "Succeeded"


def test_suspended_while_it_stops_at_its_deadline() -> None:
    play = Play(spec(limits={"deadline": "1h"}))
    play.training()
    play.wait(3600)
    assert play.change(lambda spec: spec.update(suspend=True)).phase == "Suspending"
    play.gone("quotes-t1")
    assert play.status.phase == "Suspended"
    status = play.change(lambda spec: spec.update(suspend=False))
    assert (status.phase, status.reason) == ("Failed", "DeadlineExceeded")
    assert play.jobs() == ["quotes-p1"]


# --- the resource itself ---


def finished(**blocks: Any) -> Play:
    play = Play(spec(**blocks))
    play.training()
    play.ends("quotes-t1", 0, DONE)
    return play


def exists(play: Play) -> bool:
    return play.store.get(names.KIND, NAMESPACE, "quotes") is not None


def test_a_finished_resource_goes_with_its_jobs() -> None:
    play = finished(ttlAfterFinished="1h")
    assert play.wake == 3600
    play.wait(3599)
    assert play.wake == 1
    play.reconcile_once(1)
    assert not exists(play)
    assert all(play.job(name)["metadata"]["deletionTimestamp"] for name in play.jobs())


def test_the_time_survives_a_restart_and_moves_with_the_ttl() -> None:
    play = finished(ttlAfterFinished="1h")
    play.restart()
    play.wait(1800)
    play.change(lambda spec: spec.update(ttlAfterFinished="45m"))
    assert play.wake == 900
    play.change(lambda spec: spec.update(ttlAfterFinished="2h"))
    play.wait(5399)
    assert exists(play)
    play.restart()
    play.reconcile_once(1)
    assert not exists(play)


def test_a_run_that_is_tried_again_stays() -> None:
    play = Play(spec(ttlAfterFinished="1h", limits={"maxRetries": 0}))
    play.training()
    assert play.ends("quotes-t1", 1).phase == "Failed"
    play.wait(3000)
    assert play.annotate("1").phase == "Provisioning"
    play.runs("quotes-t2")
    play.wait(7200)
    assert exists(play)
    play.ends("quotes-t2", 0, DONE)
    play.wait(3599)
    assert exists(play)
    play.reconcile_once(1)
    assert not exists(play)


def test_a_retry_that_comes_at_the_last_moment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(spec(ttlAfterFinished="1h", limits={"maxRetries": 0}))
    play.training()
    play.ends("quotes-t1", 1)
    play.wait(3599)

    inner = play.cluster.delete

    async def delete(*arguments: str) -> None:
        play.store.write_spec(names.KIND, NAMESPACE, "quotes", play.resource["spec"], {names.ANNOTATION_RETRY: "1"})
        await inner(*arguments)

    monkeypatch.setattr(play.cluster, "delete", delete)
    play.reconcile_once(1)
    assert exists(play)
    assert play.look().phase == "Provisioning"
