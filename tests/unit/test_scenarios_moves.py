"""Runs on the embedded cluster that move: suspended, to another accelerator, after the preparation's pod is gone."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.runconfig import RunConfig
from gemmatune_operator.ports import Object
from gemmatune_operator.settings import Settings
from tests.support.play import NAMESPACE, SPEC, Play

OWN_MODEL = {**SPEC, "model": {"uri": "gs://bucket/our-own-gemma"}}


def suspended(spec: Object, **trainer: Any) -> Play:
    """A run that was stopped in mid-training; preparation and first attempt have left no Job."""
    play = Play(spec)
    play.training()
    play.change(lambda spec: spec.update(suspend=True))
    play.trainer(**trainer)
    play.gone("quotes-t1")
    play.gone("quotes-p1")
    return play


def test_the_checkpoint_that_a_stop_saved_is_told_and_resumed_from() -> None:
    checkpoint = {"step": 43, "uri": "gs://b/checkpoints/step-00000043"}
    play = suspended(SPEC, progress={"step": 43}, checkpoint=checkpoint)
    assert (play.status.phase, play.jobs()) == ("Suspended", [])
    assert "the checkpoint of step 43" in play.status.message
    assert play.attempt.to_step == 43
    play.change(lambda spec: spec.update(suspend=False))
    assert play.attempt.from_step == 43


def test_a_model_outside_the_catalog_is_planned_for_another_accelerator() -> None:
    play = suspended(OWN_MODEL)
    before = play.status.plan
    assert before is not None

    def move(spec: Object) -> None:
        spec["suspend"] = False
        spec["accelerator"] = {"gpu": {"type": "nvidia-h100-80gb"}}

    play.restart()
    after = play.change(move).plan
    assert after is not None
    assert after.memory.capacity > before.memory.capacity, "the plan was made again"
    assert play.attempt.job == "quotes-t2"
    pod = play.job("quotes-t2")["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-h100-80gb"
    assert play.runs("quotes-t2").phase == "Training"


def trainer_of(play: Play, job: str) -> tuple[RunConfig, Object]:
    """What a Job's trainer is told, and its container."""
    (container,) = play.job(job)["spec"]["template"]["spec"]["containers"]
    return RunConfig.from_env(container["env"][0]["value"]), container


MOVED: dict[str, tuple[Object, str, Object, int, tuple[str, str]]] = {
    "no method": ({}, "nvidia-l4", {"topology": "2x2"}, 4, ("qlora", "lora")),
    "lora": ({"lora": {}}, "nvidia-l4", {"topology": "2x2"}, 4, ("lora", "lora")),
    "full": ({"full": {}}, "nvidia-h100-80gb", {"topology": "2x4", "chipsPerNode": 8}, 8, ("full", "full")),
}
"""Blocks of a spec, the GPU that it begins on, the slice of one host that it moves to with its chips, and the methods
there and here: without a name, the base is quantised where it can be.
"""


@pytest.mark.parametrize("case", MOVED)
def test_a_run_moves_from_a_gpu_to_a_tpu(case: str) -> None:
    """Backend, image, device and mesh of the next attempt follow from the accelerator; a slice is refused first."""
    blocks, gpu, one_host, chips, kinds = MOVED[case]
    spec = {**SPEC, **blocks, "accelerator": {"gpu": {"type": gpu}}}
    undisturbed = Play(spec)
    undisturbed.training()
    before, _ = trainer_of(undisturbed, "quotes-t1")
    play = suspended(spec, checkpoint={"step": 43, "uri": "gs://b/checkpoints/step-00000043"})

    def move(spec: Object, shape: Object) -> None:
        spec["suspend"] = False
        spec["accelerator"] = {"tpu": {"type": "tpu-v5-lite-podslice", **shape}}

    status = play.change(lambda spec: move(spec, {"topology": "4x4"}))
    assert (status.phase, status.reason) == ("Failed", "NotSupportedYet")
    assert play.jobs() == [], "no node is paid for"
    status = play.change(lambda spec: move(spec, one_host))
    assert status.plan is not None
    assert (status.plan.backend, status.plan.chips, play.attempt.from_step) == ("xla", chips, 43)
    config, container = trainer_of(play, "quotes-t2")
    assert (config.backend, config.device) == ("xla", "tpu")
    assert (before.method.kind, config.method.kind) == kinds
    quantised = {"kind", "bits", "quant_type", "double_quant"}
    assert config.method.model_dump(exclude=quantised) == before.method.model_dump(exclude=quantised)
    assert container["image"] == "gemmatune-trainer-xla:latest"
    assert container["resources"]["limits"]["google.com/tpu"] == str(chips)
    assert play.runs("quotes-t2").phase == "Training"


def test_a_move_to_what_is_too_small_is_refused_and_corrected() -> None:
    play = suspended({**SPEC, "lora": {}, "training": {"maxSteps": 100, "globalBatchSize": 28, "microBatchSize": 28}})

    def move(spec: Object, gpu: str) -> None:
        spec["suspend"] = False
        spec["accelerator"] = {"gpu": {"type": gpu}}
        spec["training"]["microBatchSize"] = 28
        spec["training"]["gradientCheckpointing"] = False

    status = play.change(lambda spec: move(spec, "nvidia-tesla-t4"))
    assert (status.phase, status.reason) == ("Failed", "DoesNotFit")
    assert play.jobs() == [], "no node is paid for"
    status = play.change(lambda spec: move(spec, "nvidia-h100-80gb"))
    assert status.attempts[-1].job == "quotes-t2"


def test_a_resource_that_is_deleted_while_it_moves_gets_no_job() -> None:
    play = suspended(SPEC)
    play.store.remove(names.KIND, NAMESPACE, "quotes")
    play.reconcile_once(1)
    assert play.jobs() == []


FULL = {**SPEC, "full": {}, "accelerator": {"gpu": {"type": "nvidia-h100-80gb"}}}


def moved_while_away(play: Play, accelerator: Object) -> None:
    """Suspended, moved and resumed between two looks of the operator."""
    for changes in ({"suspend": True}, {"suspend": False, "accelerator": accelerator}):
        play.store.write_spec(names.KIND, NAMESPACE, "quotes", {**play.resource["spec"], **changes}, None)


def test_what_moved_while_the_operator_was_away_is_planned_for_the_next_attempt() -> None:
    play = Play(FULL)
    before = play.training().plan
    moved_while_away(play, {"gpu": {"type": "nvidia-tesla-t4"}})
    status = play.look()
    assert (status.phase, status.plan) == ("Training", before), "what runs goes on by its plan"
    (accepted,) = [condition for condition in status.conditions if condition.type == "Accepted"]
    assert "keeps its plan" in accepted.message
    assert "does not fit" in accepted.message
    status = play.ends("quotes-t1", 30, {"message": "stopped", "step": 10})
    assert (status.phase, status.reason) == ("Failed", "DoesNotFit")
    assert play.jobs() == ["quotes-p1", "quotes-t1"], "no node is paid for"
    fresh = Play({**FULL, "accelerator": {"gpu": {"type": "nvidia-tesla-t4"}}}).look()
    assert status.plan is not None
    assert fresh.plan is not None
    assert status.plan.memory.capacity == fresh.plan.memory.capacity
    status = play.change(lambda spec: spec.update(accelerator={"gpu": {"type": "nvidia-a100-80gb"}}))
    assert play.attempt.job == "quotes-t2"
    assert status.plan is not None
    assert status.plan.verdict == "fits"


def test_chips_and_price_of_the_next_attempt_are_those_of_what_moved_while_the_operator_was_away() -> None:
    play = Play({**FULL, "lora": {}, "full": None})
    play.settings = Settings(prices={"nvidia-h100-80gb": 10.0, "nvidia-l4": 1.0})
    play.training()
    moved_while_away(play, {"gpu": {"type": "nvidia-l4", "count": 4}})
    play.look()
    play.ends("quotes-t1", 30, {"message": "stopped", "step": 10})
    assert play.attempt.job == "quotes-t2"
    plan = play.status.plan
    assert plan is not None
    assert (plan.chips, plan.cost_per_hour, play.attempt.cost_per_hour) == (4, 4.0, 4.0)
    (container,) = play.job("quotes-t2")["spec"]["template"]["spec"]["containers"]
    config = RunConfig.from_env(container["env"][0]["value"])
    assert config.training.micro_batch_size == plan.micro_batch_size


def test_a_move_in_the_pause_before_an_attempt_is_planned_and_ends_the_old_downshift() -> None:
    """The attempt is recorded, its Job is not made yet: the plan is that of the spec when it is."""
    play = Play({**SPEC, "training": {"maxSteps": 100, "globalBatchSize": 16, "microBatchSize": 16}})
    play.training()
    play.ends("quotes-t1", 20, {"message": "out of memory"})
    assert play.attempt.overrides is not None
    assert play.attempt.overrides.micro_batch_size == 8
    play.runs("quotes-t2")
    play.ends("quotes-t2", 40, {"message": "storage away"})
    assert (play.status.phase, play.jobs()) == ("Retrying", ["quotes-p1", "quotes-t1", "quotes-t2"])
    moved_while_away(play, {"gpu": {"type": "nvidia-h100-80gb"}})
    play.look()
    play.wait(30)
    assert play.attempt.job == "quotes-t3"
    plan = play.status.plan
    assert plan is not None
    assert plan.memory.capacity > 70 * 2**30
    (container,) = play.job("quotes-t3")["spec"]["template"]["spec"]["containers"]
    assert RunConfig.from_env(container["env"][0]["value"]).training.micro_batch_size == plan.micro_batch_size == 16


@pytest.mark.parametrize(
    ("blocks", "path", "there"),
    [
        ({"qlora": {"rank": 16}}, "spec.qlora", "Write lora: {rank: 16} in its place"),
        ({"lora": {}, "training": {"optimizer": "paged_adamw_8bit"}}, "spec.training.optimizer", "Use adamw_torch."),
    ],
)
def test_what_a_tpu_has_not_is_refused_with_what_can_still_be_done(blocks: Object, path: str, there: str) -> None:
    """Before the first attempt the block to write; afterwards it is fixed, and another resource has to be made."""
    tpu = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}}
    fresh = Play({**SPEC, **blocks, "accelerator": tpu}).look()
    assert (fresh.phase, fresh.reason) == ("Failed", "InvalidSpec")
    assert (fresh.remedy or "").startswith(there)
    play = suspended({**SPEC, **blocks})
    status = play.change(lambda spec: spec.update(suspend=False, accelerator=tpu))
    assert (status.phase, status.reason) == ("Failed", "InvalidSpec")
    remedy = status.remedy or ""
    assert remedy.startswith(f"{path} is fixed since the first attempt: put back")
    assert "a new resource with another output.uri" in remedy
    assert there in remedy
    assert play.jobs() == []
    back = play.change(lambda spec: spec.update(accelerator=SPEC["accelerator"]))
    assert (back.phase, play.jobs()) == ("Provisioning", ["quotes-t2"])


def test_a_field_that_may_still_change_keeps_its_remedy() -> None:
    play = suspended({**SPEC, "lora": {}})
    status = play.change(lambda spec: spec.update(suspend=False, accelerator={"gpu": {"type": "nvidia-l40"}}))
    assert (status.remedy or "").startswith("Use nvidia-")
