"""Runs on the embedded cluster whose spec changes at an awkward moment: suspended, ending, or with nobody looking."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api.names import ConditionType
from gemmatune_api.runconfig import RunConfig
from gemmatune_cli.local import jobs
from gemmatune_operator.manifests.quantities import parse
from gemmatune_operator.ports import Object
from tests.support.play import DONE, NAMESPACE, PREPARED, SPEC, Play, ended

H100 = {**SPEC, "qlora": {}, "accelerator": {"gpu": {"type": "nvidia-h100-80gb"}}}
SPOT = {**SPEC, "provisioning": {"mode": "spot", "fallback": {"afterPreemptions": 3, "afterPending": "10m"}}}
MANIFEST = {"manifest": "gs://bucket/quotes/manifest.json"}


@pytest.fixture
def play() -> Play:
    return Play()


def container(play: Play, job: str) -> Object:
    (found,) = play.job(job)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def unseen(play: Play, job: str, message: Object) -> None:
    """A pod succeeds, and the Job controller notes it, while the operator is away."""
    name = play.pod(job)["metadata"]["name"]
    play.store.write_status("Pod", NAMESPACE, name, ended(0, message, "", play.now))
    jobs.sync(play.store, play.job(job), play.now)


def suspend(play: Play, job: str) -> None:
    play.change(lambda spec: spec.update(suspend=True))
    play.gone(job)
    assert play.status.phase == "Suspended"


def resume(play: Play, **blocks: Any) -> None:
    play.change(lambda spec: spec.update(suspend=False, **blocks))


# --- before the first attempt ---


def test_data_that_was_prepared_before_a_correction_is_never_trained(play: Play) -> None:
    """Suspended and corrected before anybody saw the preparation's end, in changes of one field each."""
    play.look()
    unseen(play, "quotes-p1", PREPARED)
    play.change(lambda spec: spec.update(suspend=True))
    play.change(lambda spec: spec["dataset"].update(uri="gs://bucket/other.jsonl"))
    play.change(lambda spec: spec.update(limits={"maxRetries": 2}))
    resume(play)
    assert play.status.phase == "Preparing"
    assert play.jobs() == ["quotes-p1", "quotes-p2"]
    config = RunConfig.from_env(container(play, "quotes-p2")["env"][0]["value"])
    assert config.dataset.uri == "gs://bucket/other.jsonl"
    play.ends("quotes-p2", 0, PREPARED)
    assert "quotes-t1" in play.jobs()


def test_a_suspension_alone_costs_no_preparation(play: Play) -> None:
    play.look()
    unseen(play, "quotes-p1", PREPARED)
    play.change(lambda spec: spec.update(suspend=True))
    play.change(lambda spec: spec.update(limits={"maxRetries": 2}))
    resume(play)
    assert play.jobs() == ["quotes-p1", "quotes-t1"]
    assert play.status.plan is not None
    assert play.status.data is not None


# --- memory that was granted ---


def out_of_memory() -> Play:
    """On an H100, twice what an L4's machine has; its node is read by nobody."""
    play = Play(H100)
    play.training()
    play.ends("quotes-t1", 137, "", "OOMKilled")
    play.runs("quotes-t2")
    return play


def test_granted_memory_stays_below_the_largest_machine() -> None:
    play = out_of_memory()
    assert play.attempt.overrides is not None
    assert play.attempt.overrides.memory is not None
    assert play.attempt.overrides.memory < 234 * 2**30
    limit = container(play, "quotes-t2")["resources"]["limits"]["memory"]
    assert 0 <= parse(limit) - play.attempt.overrides.memory < 2**20, "in whole mebibytes"


def test_granted_memory_does_not_follow_to_another_machine() -> None:
    play = out_of_memory()
    suspend(play, "quotes-t2")
    limited = {"resources": {"limits": {"memory": "24Gi"}}}
    resume(play, accelerator={"gpu": {"type": "nvidia-l4"}}, pod=limited)
    assert container(play, "quotes-t3")["resources"]["limits"]["memory"] == "24Gi"
    assert play.status.attempts[1].overrides is not None, "what was is told as it was"
    play.runs("quotes-t3")
    play.ends("quotes-t3", 137, "", "OOMKilled")
    assert container(play, "quotes-t4")["resources"]["limits"]["memory"] == "36Gi", "what it is granted there, holds"


# --- deadlines ---


def test_a_deadline_that_is_raised_while_it_trains() -> None:
    """The Job still ends by what it was made with: for the run that is an interruption."""
    play = Play({**SPEC, "limits": {"deadline": "10h", "pendingDeadline": "1h", "stallTimeout": "20h"}})
    play.training()
    backstop = play.job("quotes-t1")["spec"]["activeDeadlineSeconds"]
    play.change(lambda spec: spec["limits"].update(deadline="100h"))
    play.wait(11 * 3600)
    assert play.status.phase == "Training"
    play.now += timedelta(seconds=backstop - 11 * 3600 + 1)
    over = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active too long"}
    play.store.write_status("Job", NAMESPACE, "quotes-t1", {"conditions": [over]})
    play.look()
    assert (play.status.attempts[0].reason, play.status.attempts[0].counted) == ("Interrupted", False)
    assert play.attempt.number == 2
    assert play.job("quotes-t2")["spec"]["activeDeadlineSeconds"] > 80 * 3600, "made with the new one"


# --- an end that a suspension meets ---


def test_a_run_that_has_finished_is_not_suspended(play: Play) -> None:
    play.training()
    unseen(play, "quotes-t1", DONE)
    play.change(lambda spec: spec.update(suspend=True))
    assert (play.status.phase, play.attempt.reason) == ("Succeeded", "Completed")
    resume(play)
    play.wait(60)
    assert play.jobs() == ["quotes-p1", "quotes-t1"], "no second node"


@pytest.mark.parametrize("seen", ["while it stops", "after it stopped", "when it goes on"])
def test_a_run_that_finishes_while_it_is_being_suspended(play: Play, seen: str) -> None:
    play.training()
    spec = play.resource["spec"]
    play.store.write_spec(play.resource["kind"], NAMESPACE, play.name, {**spec, "suspend": True}, None)
    play.reconcile_once()
    assert (play.status.phase, play.attempt.reason) == ("Suspending", "Suspended")
    if seen == "while it stops":
        play.trainer(artifacts=MANIFEST)
        assert play.status.phase == "Succeeded"
    play.gone("quotes-t1")
    if seen == "after it stopped":
        assert play.status.phase == "Suspended"
        play.trainer(artifacts=MANIFEST)
        assert play.status.phase == "Succeeded"
    if seen == "when it goes on":
        status = {**play.resource["status"], "artifacts": MANIFEST}
        play.store.write_status(play.resource["kind"], NAMESPACE, play.name, status)
    resume(play)
    play.wait(60)
    assert (play.status.phase, play.attempt.number) == ("Succeeded", 1)
    assert "quotes-t2" not in play.jobs(), "no second node"
    assert play.condition(ConditionType.SUSPENDED) == ("False", "Completed")


def test_only_the_merge_of_a_finished_run_is_suspended() -> None:
    play = Play({**SPEC, "output": {"uri": "gs://bucket/quotes", "merge": True}})
    play.training()
    unseen(play, "quotes-t1", DONE)
    play.change(lambda spec: spec.update(suspend=True))
    assert (play.status.phase, play.attempt.reason) == ("Suspended", "Completed")
    resume(play)
    assert play.status.phase == "Merging"
    assert play.jobs() == ["quotes-m1", "quotes-p1", "quotes-t1"]


def test_a_run_that_is_resumed_while_it_still_stops_and_then_completes(play: Play) -> None:
    """The next attempt is recorded, and waits for the pod of the one before, which ends well."""
    play.training()
    spec = play.resource["spec"]
    play.store.write_spec(play.resource["kind"], NAMESPACE, play.name, {**spec, "suspend": True}, None)
    play.reconcile_once()
    name = play.pod("quotes-t1")["metadata"]["name"]
    play.store.write_spec(play.resource["kind"], NAMESPACE, play.name, spec, None)
    play.reconcile_once()
    assert (play.attempt.number, play.jobs()) == (2, ["quotes-p1", "quotes-t1"])
    play.store.write_status("Pod", NAMESPACE, name, ended(0, DONE, "", play.now))
    play.reconcile_once()
    assert (play.status.phase, play.attempt.number, play.attempt.reason) == ("Succeeded", 1, "Completed")
    play.gone("quotes-t1")
    assert "quotes-t2" not in play.jobs()


# --- spot, and what speaks against it ---


def test_a_wait_in_vain_speaks_of_one_accelerator_only() -> None:
    play = Play(SPOT)
    play.prepared()
    play.wait(601)
    play.gone("quotes-t1")
    assert (play.attempt.number, play.attempt.provisioning) == (2, "onDemand")
    play.runs("quotes-t2")
    suspend(play, "quotes-t2")
    resume(play)
    assert play.attempt.provisioning == "onDemand", "a suspension alone makes no new market"
    suspend(play, "quotes-t3")
    resume(play, accelerator={"gpu": {"type": "nvidia-a100-80gb"}})
    assert play.attempt.provisioning == "spot"


def test_a_wait_in_vain_is_remembered_when_its_attempt_is_shown_no_more() -> None:
    play = Play({**SPOT, "limits": {"maxRetries": 50}})
    play.prepared()
    play.wait(601)
    play.gone("quotes-t1")
    for number in range(2, 24):
        play.ends(f"quotes-t{number}", 1)
        play.wait(600)
    assert play.status.attempts[0].number > 1
    assert {attempt.provisioning for attempt in play.status.attempts} == {"onDemand"}
    play.change(lambda spec: spec.update(limits={"maxRetries": 0}))
    play.ends("quotes-t24", 1)
    assert play.status.phase == "Failed"
    play.annotate("1")
    assert play.attempt.provisioning == "spot", "a retry on demand tries the market again"


# --- a spec that becomes invalid ---


def test_a_node_that_is_paid_for_is_not_hidden_by_an_invalid_spec(play: Play) -> None:
    play.training()
    play.change(lambda spec: spec.update(limits={"maxCost": 5.0}))
    assert play.condition(ConditionType.ACCEPTED) == ("False", "InvalidSpec")
    assert (play.status.phase, play.status.reason) == ("Training", "Running")
    assert play.jobs() == ["quotes-p1", "quotes-t1"]


def test_an_attempt_that_waits_for_its_node_does_not_hide_an_invalid_spec(play: Play) -> None:
    play.prepared()
    play.change(lambda spec: spec.update(limits={"maxCost": 5.0}))
    assert (play.status.phase, play.status.reason) == ("Pending", "InvalidSpec")
    assert play.jobs() == ["quotes-p1", "quotes-t1"], "it goes on all the same"
    play.change(lambda spec: spec.pop("limits"))
    assert play.status.phase == "Provisioning"
