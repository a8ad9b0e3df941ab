"""Whole runs on the embedded cluster: the real reconcile and Job controller, pods whose ends are played."""

from __future__ import annotations

import asyncio

import pytest

from gemmatune_api import names
from gemmatune_api.names import ConditionType
from gemmatune_operator.ports import (
    Object,
)
from gemmatune_operator.reconcile import reconcile
from tests.support.play import DONE, NAMESPACE, Play, spec

pytestmark = pytest.mark.usefixtures("both_ways")

C = ConditionType


@pytest.fixture
def play() -> Play:
    return Play()


# --- the plain story ---


def test_to_an_adapter_that_is_no_better_than_the_base(play: Play) -> None:
    play.training()
    told = {"message": "The evaluation loss did not fall: it went from 2 to 3.", "remedy": "Look at the samples."}
    status = play.ends("quotes-t1", 0, {**DONE, **told})
    assert status.phase == "Succeeded"
    assert "did not fall" in status.message
    assert status.remedy == "Look at the samples."
    assert play.wait(3600).remedy == "Look at the samples.", "later looks keep it"


def test_to_success(play: Play) -> None:
    assert play.look().phase == "Preparing"
    assert play.prepared().phase == "Provisioning"
    assert play.runs("quotes-t1").phase == "Training"
    play.trainer(progress={"step": 40}, artifacts={"adapter": "gs://bucket/quotes/adapter"})
    status = play.ends("quotes-t1", 0, DONE)
    assert status.phase == "Succeeded"
    assert status.message == f"The adapter is written and verified: gs://bucket/quotes/adapter. {DONE['message']}"
    assert status.remedy == ""
    assert status.progress is not None
    assert play.events() == ["Valid", "Preparing", "Prepared", "Provisioning", "Running", "Completed"]
    assert play.jobs() == ["quotes-p1", "quotes-t1"]
    assert play.one_pod_each()
    version = play.store.version
    play.wait(3600)
    assert play.store.version == version, "a finished run is left in peace"


def test_progress_leads_to_no_write(play: Play) -> None:
    play.training()
    play.trainer(progress={"step": 1, "heartbeat": "a"})
    before = play.store.version
    play.wait(30)
    assert play.store.version == before


def test_the_config_that_a_trainer_gets(play: Play) -> None:
    from gemmatune_api.runconfig import RunConfig

    play.prepared()
    container = play.job("quotes-t1")["spec"]["template"]["spec"]["containers"][0]
    value = next(item["value"] for item in container["env"] if item["name"] == names.ENV_RUN)
    config = RunConfig.from_env(value)
    assert (config.attempt, config.run.uid) == (1, play.resource["metadata"]["uid"])
    assert config.training.micro_batch_size == play.status.plan.micro_batch_size  # type: ignore[union-attr]


# --- ends and what follows ---


def test_fatal_in_preparation_then_corrected(play: Play) -> None:
    play.look()
    status = play.ends("quotes-p1", 12, {"message": "row 7", "remedy": "Fix it."})
    assert (status.phase, status.reason, status.remedy) == ("Failed", "DataInvalid", "Fix it.")

    def correct(spec: Object) -> None:
        spec["dataset"]["text"]["template"] = "{text}"

    status = play.change(correct)
    assert (status.phase, status.prepare.number if status.prepare else 0) == ("Preparing", 2)
    assert play.condition(C.FAILED) == ("False", "Retrying")
    assert play.prepared(2).phase == "Provisioning"


def test_fatal_in_preparation_then_retried_by_annotation(play: Play) -> None:
    play.look()
    play.ends("quotes-p1", 11, {"message": "403"})
    assert "gemmatune.dev/retry" in play.status.remedy
    assert play.annotate("a").phase == "Preparing"
    assert play.jobs() == ["quotes-p1", "quotes-p2"]
    play.ends("quotes-p2", 11)
    assert play.status.phase == "Failed"
    assert play.annotate("a").phase == "Failed"
    assert play.annotate("b").phase == "Preparing"


def test_out_of_accelerator_memory_until_it_fits(play: Play) -> None:
    play.training()
    micro = play.status.plan.micro_batch_size  # type: ignore[union-attr]
    sizes = []
    number = 1
    while play.status.phase != "Failed":
        play.runs(f"quotes-t{number}")
        play.ends(f"quotes-t{number}", 20, {"message": "CUDA out of memory"})
        overrides = play.attempt.overrides
        sizes.append((overrides.micro_batch_size, overrides.gradient_checkpointing) if overrides else None)
        number += 1
    assert play.status.reason == "AcceleratorOutOfMemory"
    assert "accelerator" in play.status.remedy
    assert play.status.counters is not None
    assert play.status.counters.retries == 0
    assert play.status.counters.out_of_memory == number - 2 <= 3
    assert sizes[0] in ((micro // 2, None), (None, True), (micro // 2, True))
    assert play.one_pod_each()


def test_out_of_host_memory(play: Play) -> None:
    play.training()

    def limit(job: str) -> str:
        resources = play.job(job)["spec"]["template"]["spec"]["containers"][0]["resources"]
        return str(resources["limits"]["memory"])

    play.store.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "localhost"}})
    play.store.write_status("Node", "", "localhost", {"allocatable": {"memory": "400Gi"}})
    status = play.ends("quotes-t1", 137, "", "OOMKilled")
    assert (status.attempts[0].reason, status.attempts[0].counted) == ("HostOutOfMemory", True)
    assert limit("quotes-t1") != limit("quotes-t2")
    assert status.attempts[1].overrides is not None
    assert status.attempts[1].overrides.memory


def test_backoff_then_budget() -> None:
    play = Play(spec(limits={"maxRetries": 2}))
    play.training()
    for number in (1, 2):
        status = play.ends(f"quotes-t{number}", 1, "Traceback\nValueError: odd")
        assert (status.phase, len(status.attempts)) == ("Retrying", number + 1)
        assert "ValueError: odd" in status.message
        assert f"quotes-t{number + 1}" not in play.jobs()
        assert play.wake is not None
        assert play.wake > 5
        play.wait(play.wake - 1)
        assert f"quotes-t{number + 1}" not in play.jobs()
        play.wait(2)
        play.runs(f"quotes-t{number + 1}")
        assert play.status.next_attempt_time is None
    status = play.ends("quotes-t3", 1)
    assert (status.phase, status.reason) == ("Failed", "Crashed")
    assert ". limits.maxRetries (2) is used up (retry 2 of 2, preemptions 0 of 20)." in status.message
    assert status.summary is not None
    assert status.summary.retries == "2/2"
    status = play.annotate("again")
    assert status.phase == "Provisioning"
    assert play.runs("quotes-t4").phase == "Training"
    assert play.status.summary.retries == "0/2"  # type: ignore[union-attr]


def test_spot_falls_back_after_preemptions() -> None:
    play = Play(spec(provisioning={"mode": "spot", "fallback": {"afterPreemptions": 2}}))
    play.training()
    modes = []
    for number in (1, 2, 3):
        modes.append(play.attempt.provisioning)
        play.runs(f"quotes-t{number}")
        play.ends(f"quotes-t{number}", 30)
    assert modes == ["spot", "spot", "onDemand"]
    assert play.status.counters.preemptions == 3  # type: ignore[union-attr]


def test_spot_falls_back_after_waiting() -> None:
    play = Play(spec(provisioning={"mode": "spot", "fallback": {"afterPending": "10m"}}))
    play.prepared()
    play.wait(599)
    assert play.attempt.number == 1
    status = play.wait(2)
    assert (status.attempts[0].reason, status.attempts[1].provisioning) == ("CapacityUnavailable", "onDemand")
    assert play.job("quotes-t1")["metadata"].get("deletionTimestamp")
    play.gone("quotes-t1")
    assert "quotes-t2" in play.jobs()
    play.runs("quotes-t2")
    play.wait(44 * 60)
    assert play.attempt.end_time is None, "the second attempt loads its model: what the first one did is no step of it"
    play.wait(60)
    assert play.attempt.number == 3
    assert play.status.counters.preemptions == 0  # type: ignore[union-attr]


def test_vanished(play: Play) -> None:
    play.training()
    play.gone("quotes-t1")
    assert (play.status.attempts[0].reason, play.attempt.number) == ("JobVanished", 2)


def test_stalled(play: Play) -> None:
    play.training()
    play.steps(5)
    for minute in range(1, 15):
        play.now = play.now.replace(second=0)
        play.wait(60)
        assert len(play.status.attempts) == 1, minute
    play.steps(5)
    play.wait(14 * 60)
    assert len(play.status.attempts) == 1
    play.wait(60)
    assert play.status.attempts[0].reason == "Stalled"
    assert play.job("quotes-t1")["metadata"].get("deletionTimestamp"), "what stalls is ended"
    assert "quotes-t2" not in play.jobs()
    play.gone("quotes-t1")
    assert "quotes-t2" in play.jobs()
    play.runs("quotes-t2")
    play.wait(44 * 60)
    assert play.attempt.end_time is None, "the second attempt loads its model: what the first one did is no step of it"
    play.wait(60)
    assert play.attempt.number == 3


def test_pending_deadline() -> None:
    play = Play(spec(limits={"pendingDeadline": "1h"}))
    play.prepared()
    play.pod_status("quotes-t1", {"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}]})  # fmt: skip
    status = play.wait(3601)
    assert (status.phase, status.reason) == ("Failed", "DeadlineExceeded")
    assert "0/2 nodes" in status.message


# --- suspend, corrections, conflicts ---


def test_suspend_and_move(play: Play) -> None:
    play.training()
    play.trainer(checkpoint={"step": 40, "uri": "gs://b/c"}, progress={"step": 41})

    def suspend(spec: Object) -> None:
        spec["suspend"] = True

    assert play.change(suspend).phase == "Suspending"
    assert play.job("quotes-t1")["metadata"].get("deletionTimestamp")
    play.gone("quotes-t1")
    assert play.status.phase == "Suspended"

    def move(spec: Object) -> None:
        spec["suspend"] = False
        spec["accelerator"] = {"gpu": {"type": "nvidia-a100-80gb"}}

    status = play.change(move)
    assert status.summary is not None
    assert status.summary.accelerator == "1x nvidia-a100-80gb"
    assert (status.attempts[0].to_step, status.attempts[1].from_step) == (41, 40)
    selector = play.job("quotes-t2")["spec"]["template"]["spec"]["nodeSelector"]
    assert selector["cloud.google.com/gke-accelerator"] == "nvidia-a100-80gb"
    assert play.runs("quotes-t2").phase == "Training"


def test_suspended_from_the_start() -> None:
    play = Play(spec(suspend=True))
    assert play.look().phase == "Suspended"
    assert play.jobs() == []
    assert play.change(lambda spec: spec.update(suspend=False)).phase == "Preparing"


def test_suspend_during_preparation(play: Play) -> None:
    play.look()
    assert play.change(lambda spec: spec.update(suspend=True)).phase == "Suspending"
    play.gone("quotes-p1")
    assert play.status.phase == "Suspended"
    status = play.change(lambda spec: spec.update(suspend=False))
    assert (status.phase, play.jobs()) == ("Preparing", ["quotes-p1"]), "the same preparation: nothing it reads changed"
    assert play.prepared().phase == "Provisioning"


def test_a_broken_spec_lets_the_attempt_run_and_is_its_last(play: Play) -> None:
    play.training()
    play.change(lambda spec: spec["training"].update(maxSteps=0))
    assert (play.status.phase, play.condition(C.ACCEPTED)) == ("Training", ("False", "InvalidSpec")) or (
        play.status.phase,
        play.condition(C.ACCEPTED),
    ) == ("Pending", ("False", "InvalidSpec"))
    play.ends("quotes-t1", 30)
    assert (play.status.phase, play.status.reason) == ("Failed", "InvalidSpec")
    play.change(lambda spec: spec["training"].update(maxSteps=100))
    assert play.runs("quotes-t2").phase == "Training"


def test_two_runs_one_output(play: Play) -> None:
    play.look()
    second = Play(store=play.store, name="second")
    assert (second.look().phase, second.status.reason) == ("Pending", "OutputInUse")
    play.store.remove(names.KIND, NAMESPACE, "quotes")
    assert second.wait(60).phase == "Preparing"


def test_deleting_means_hands_off(play: Play) -> None:
    play.look()
    play.store.remove(names.KIND, NAMESPACE, "quotes")
    version = play.store.version
    assert asyncio.run(reconcile(play.cluster, NAMESPACE, "quotes", play.now, play.settings)) is None
    assert play.store.version == version
