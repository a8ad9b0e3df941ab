"""Runs on the embedded cluster that move: suspended, to another accelerator, after the preparation's pod is gone."""

from __future__ import annotations

from typing import Any

from gemmatune_api import names
from gemmatune_api.runconfig import RunConfig
from gemmatune_operator.ports import Object
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


def test_a_run_by_lora_moves_from_a_gpu_to_a_tpu() -> None:
    """Backend, image, device and mesh of the next attempt follow from the accelerator; a slice is refused first."""
    play = suspended({**SPEC, "lora": {}}, checkpoint={"step": 43, "uri": "gs://b/checkpoints/step-00000043"})

    def move(spec: Object, topology: str) -> None:
        spec["suspend"] = False
        spec["accelerator"] = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": topology}}

    status = play.change(lambda spec: move(spec, "4x4"))
    assert (status.phase, status.reason) == ("Failed", "NotSupportedYet")
    assert play.jobs() == [], "no node is paid for"
    status = play.change(lambda spec: move(spec, "2x2"))
    assert status.plan is not None
    assert (status.plan.backend, status.plan.chips, play.attempt.from_step) == ("xla", 4, 43)
    (container,) = play.job("quotes-t2")["spec"]["template"]["spec"]["containers"]
    config = RunConfig.from_env(container["env"][0]["value"])
    assert (config.backend, config.device) == ("xla", "tpu")
    assert container["image"] == "gemmatune-trainer-xla:latest"
    assert container["resources"]["limits"]["google.com/tpu"] == "4"
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
