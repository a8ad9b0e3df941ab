"""What may change when: every row of the table, before and after the first attempt, running, suspended and failed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from gemmatune_api import cel
from gemmatune_api.names import PLURAL
from gemmatune_api.spec import FineTuneSpec, TrainingSpec
from tests.support.api import Api, ApiError
from tests.support.controlplane import ControlPlane
from tests.support.resources import MISSING, Object, changed, resource

pytestmark = pytest.mark.cluster

Changes = dict[str, Any]

FIXED: dict[str, tuple[Changes, Changes]] = {
    "model": ({}, {"spec.model.uri": "hf://google/gemma-2-9b"}),
    "model revision added": ({}, {"spec.model.revision": "abc"}),
    "dataset": ({}, {"spec.dataset.text.template": "{quote}"}),
    "dataset format": ({}, {"spec.dataset.text": MISSING, "spec.dataset.chat": {}}),
    "qlora rank": ({"spec.qlora": {"rank": 4}}, {"spec.qlora.rank": 8}),
    "qlora dropped": ({"spec.qlora": {"rank": 4}}, {"spec.qlora": MISSING}),
    "lora added": ({}, {"spec.lora": {}}),
    "lora modules": (
        {"spec.lora": {"targetModules": ["q_proj", "k_proj"]}},
        {"spec.lora.targetModules": ["q_proj", "v_proj"]},
    ),
    "lora modules from preset to list": (
        {"spec.lora": {"targetModules": "attention"}},
        {"spec.lora.targetModules": ["q_proj"]},
    ),
    "lora preset": ({"spec.lora": {"targetModules": "attention"}}, {"spec.lora.targetModules": "all-linear"}),
    "lora preset dropped": ({"spec.lora": {"targetModules": "attention"}}, {"spec.lora.targetModules": MISSING}),
    "full added": ({}, {"spec.full": {}}),
    "output": ({}, {"spec.output.uri": "gs://my-bucket/other"}),
    "output overwrite": ({}, {"spec.output.overwrite": True}),
    "samples prompt": ({"spec.samples": {"prompts": ["a", "b"]}}, {"spec.samples.prompts": ["a", "c"]}),
    "samples image": (
        {"spec.samples": {"prompts": [{"text": "a", "image": "i"}]}},
        {"spec.samples.prompts": [{"text": "a", "image": "j"}]},
    ),
    "tracking added": ({}, {"spec.tracking": {"tensorboard": True}}),
    "training dropped": ({"spec.training": {"epochs": 2}}, {"spec.training": MISSING}),
}
"""Rows by the first word, the field: what a resource has, and a change that is refused from the first attempt on."""

PAUSED: dict[str, tuple[Changes, Changes]] = {
    "accelerator": ({}, {"spec.accelerator": {"cpu": {}}}),
    "accelerator type": ({}, {"spec.accelerator.gpu.type": "nvidia-a100-80gb"}),
    "provisioning": ({}, {"spec.provisioning": {"mode": "spot"}}),
    "backend": ({}, {"spec.backend": "torch"}),
    "mesh": ({"spec.mesh": {"data": 2}}, {"spec.mesh": MISSING}),
    "scheduling": ({}, {"spec.scheduling": {"queueName": "q"}}),
    "pod": ({"spec.pod": {"image": "a"}}, {"spec.pod.image": "b"}),
    "checkpoint": ({"spec.checkpoint": {"keep": 2}}, {"spec.checkpoint.keep": 3}),
    "training.microBatchSize": ({}, {"spec.training": {"microBatchSize": 2}}),
    "training.gradientCheckpointing": (
        {"spec.training": {"gradientCheckpointing": False}},
        {"spec.training.gradientCheckpointing": True},
    ),
}

ALWAYS: dict[str, Changes] = {
    "suspend": {"spec.suspend": True},
    "limits": {"spec.limits": {"maxRetries": 9}},
    "ttlAfterFinished": {"spec.ttlAfterFinished": "1d"},
}

TRAINING: dict[str, tuple[Any, Any]] = {
    "maxSteps": (10, 20),
    "epochs": (1, 2.5),
    "globalBatchSize": (8, 16),
    "learningRate": (1e-4, 2e-4),
    "schedule": ("cosine", "linear"),
    "warmupSteps": (1, 2),
    "optimizer": ("adamw_torch", "adafactor"),
    "weightDecay": (0, 0.1),
    "maxGradNorm": (1, 2),
    "precision": ("bf16", "fp32"),
    "seed": (1, 2),
    "logEverySteps": (1, 2),
    "evalEverySteps": (1, 2),
}
"""The fields of training that are fixed, each with two values."""
FIXED |= {
    f"training.{field}": ({"spec.training": {field: old}}, {f"spec.training.{field}": new})
    for field, (old, new) in TRAINING.items()
}
FIXED |= {
    f"training.{field} dropped": ({"spec.training": {field: old}}, {f"spec.training.{field}": MISSING})
    for field, (old, _) in TRAINING.items()
}

ATTEMPT = {"attempts": [{"number": 1, "job": "quotes-t1"}]}

_numbers = count()


class Stored:
    """A resource on the API server."""

    def __init__(self, api: Api, namespace: str, changes: Changes) -> None:
        self.api = api
        self.collection = f"/apis/gemmatune.dev/v1alpha1/namespaces/{namespace}/{PLURAL}"
        name = f"run-{next(_numbers)}"
        api.create(self.collection, resource(name, changes))
        self.path = f"{self.collection}/{name}"

    def change(self, changes: Changes) -> None:
        """Replaces the resource by one with these changes. Errors: ApiError."""
        self.api.call("PUT", self.path, changed(self.api.get(self.path), changes))

    def status(self, status: Object) -> None:
        """Writes status. Errors: ApiError."""
        self.api.patch(f"{self.path}/status", {"status": status})


@pytest.fixture(scope="module")
def space(crd: ControlPlane, make_namespace: Any) -> Iterator[str]:
    name = make_namespace()
    yield name
    crd.api.delete(f"/api/v1/namespaces/{name}")


def stored(crd: ControlPlane, space: str, changes: Changes) -> Stored:
    return Stored(crd.api, space, changes)


def refused(run: Stored, change: Changes, field: str) -> str:
    """The words of the one refusal, which names the field."""
    with pytest.raises(ApiError) as answer:
        run.change(change)
    assert answer.value.status == 422
    causes = answer.value.body["details"]["causes"]
    assert [cause["field"] for cause in causes] == [f"spec.{field}"]
    return str(causes[0]["message"])


def test_the_tables_hold_every_field_of_spec_once() -> None:
    fields = [field.alias or name for name, field in FineTuneSpec.model_fields.items()]

    assert sorted([*cel.ALWAYS, *cel.PAUSED, *cel.FIXED, "training"]) == sorted(fields)
    assert {row.split()[0].split(".")[0] for row in FIXED} == {*cel.FIXED, "training"}
    assert {row.split()[0] for row in PAUSED} == {*cel.PAUSED, *(f"training.{field}" for field in cel.PAUSED_TRAINING)}
    training = [field.alias or name for name, field in TrainingSpec.model_fields.items()]
    assert sorted([*TRAINING, *cel.PAUSED_TRAINING]) == sorted(training)


@pytest.mark.parametrize("row", FIXED)
def test_a_fixed_field_changes_until_the_first_attempt(row: str, crd: ControlPlane, space: str) -> None:
    before, change = FIXED[row]

    for status in (None, {"phase": "Preparing"}, {"attempts": []}):
        run = stored(crd, space, before)
        if status is not None:
            run.status(status)
        run.change(change)


@pytest.mark.parametrize("row", FIXED)
def test_a_fixed_field_never_changes_afterwards(row: str, crd: ControlPlane, space: str) -> None:
    before, change = FIXED[row]
    field = row.split()[0]
    field = "training.epochs" if field == "training" else field
    run = stored(crd, space, before)
    run.status({**ATTEMPT, "phase": "Training"})

    assert refused(run, change, field).endswith(
        f"spec.{field} is fixed once the first attempt exists; "
        "to change it create a new resource with another output.uri"
    )
    refused(run, {**change, "spec.suspend": True}, field)
    run.status({"phase": "Failed"})
    refused(run, change, field)


@pytest.mark.parametrize("row", PAUSED)
def test_a_field_of_placement_changes_only_while_nothing_runs(row: str, crd: ControlPlane, space: str) -> None:
    before, change = PAUSED[row]
    field = row.split()[0]
    stored(crd, space, before).change(change)

    run = stored(crd, space, before)
    run.status({**ATTEMPT, "phase": "Training"})
    assert refused(run, change, field).endswith(
        f"spec.{field} may change only while the run is suspended or failed; set spec.suspend: true with it"
    )
    run.change({**change, "spec.suspend": True})

    run = stored(crd, space, {**before, "spec.suspend": True})
    run.status({**ATTEMPT, "phase": "Suspended"})
    run.change(change)

    run = stored(crd, space, {**before, "spec.suspend": True})
    run.status({**ATTEMPT, "phase": "Suspended"})
    run.change({**change, "spec.suspend": False})

    run = stored(crd, space, before)
    run.status({**ATTEMPT, "phase": "Failed"})
    run.change(change)


@pytest.mark.parametrize("field", cel.ALWAYS)
def test_a_field_of_control_changes_at_any_time(field: str, crd: ControlPlane, space: str) -> None:
    run = stored(crd, space, {})
    run.status({**ATTEMPT, "phase": "Training"})

    run.change(ALWAYS[field])
    run.change({f"spec.{field}": MISSING})


def test_labels_annotations_and_status_change_at_any_time(crd: ControlPlane, space: str) -> None:
    run = stored(crd, space, {"spec.lora": {"targetModules": ["q_proj"]}, "spec.training": {"epochs": 2}})
    run.status({**ATTEMPT, "phase": "Training"})

    run.change({"metadata.labels": {"team": "nlp"}, "metadata.annotations": {"gemmatune.dev/retry": "1"}})
    run.status({"phase": "Retrying", "attempts": [{"number": n, "job": f"quotes-t{n}"} for n in range(2, 22)]})


def test_several_refusals_come_together(crd: ControlPlane, space: str) -> None:
    run = stored(crd, space, {})
    run.status({**ATTEMPT, "phase": "Training"})

    with pytest.raises(ApiError) as answer:
        run.change({"spec.model.uri": "hf://google/gemma-3-270m", "spec.full": {}, "spec.pod": {}})

    fields = {cause["field"] for cause in answer.value.body["details"]["causes"]}
    assert fields == {"spec.model", "spec.full", "spec.pod"}
