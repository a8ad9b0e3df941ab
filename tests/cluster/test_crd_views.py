"""What a person sees of a resource through kubectl, and that a status write passes whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from gemmatune_api import crd as definition
from gemmatune_api.names import CATEGORIES, PLURAL, SHORT_NAME, ConditionType
from gemmatune_api.status import FineTuneStatus
from tests.support.api import ApiError
from tests.support.controlplane import ControlPlane
from tests.support.resources import changed, resource
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster

Kubectl = Callable[..., CompletedProcess[str]]
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Training",
    "reason": "Running",
    "message": "Step 40 of 100.",
    "summary": {
        "model": "gemma-2-2b",
        "method": "qlora r8",
        "accelerator": "1x nvidia-l4",
        "output": "gs://my-bucket/quotes",
        "retries": "1/3",
    },
    "conditions": [
        {"type": "Accepted", "status": "True", "reason": "Valid", "lastTransitionTime": "2026-01-02T03:04:05Z"}
    ],
    "progress": {
        "step": 40,
        "totalSteps": 100,
        "stepText": "40/100",
        "loss": 2.345,
        "eta": "1h12m",
        "tokensPerSecond": 512.5,
    },
}


def path(namespace: str, name: str = "quotes") -> str:
    return f"/apis/gemmatune.dev/v1alpha1/namespaces/{namespace}/{PLURAL}/{name}"


@pytest.fixture
def run(crd: ControlPlane, namespace: str) -> str:
    """The path of a resource `quotes` that trains."""
    crd.kubectl("apply", "-n", namespace, "-f", "-", input=resource())
    crd.api.patch(f"{path(namespace)}/status", {"status": STATUS})
    return path(namespace)


def test_the_columns(run: str, kubectl: Kubectl, namespace: str) -> None:
    lines = kubectl("get", SHORT_NAME, "-n", namespace).stdout.splitlines()

    assert lines[0].split() == [
        "NAME",
        "PHASE",
        "MODEL",
        "METHOD",
        "ACCELERATOR",
        "STEP",
        "LOSS",
        "ETA",
        "RETRIES",
        "AGE",
    ]
    assert " ".join(lines[1].split()[:-1]) == "quotes Training gemma-2-2b qlora r8 1x nvidia-l4 40/100 2.345 1h12m 1/3"


def test_the_wide_columns(run: str, kubectl: Kubectl, namespace: str) -> None:
    lines = kubectl("get", SHORT_NAME, "-n", namespace, "-o", "wide").stdout.splitlines()

    assert lines[0].split()[-4:] == ["AGE", "SPEED", "REASON", "OUTPUT"]
    assert lines[1].split()[-3:] == ["512.5", "Running", "gs://my-bucket/quotes"]


def test_a_new_resource_has_empty_columns(crd: ControlPlane, kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "-n", namespace, "-f", "-", input=resource())

    assert kubectl("get", SHORT_NAME, "-n", namespace).stdout.splitlines()[1].split()[0] == "quotes"


def test_the_names(crd: ControlPlane, kubectl: Kubectl) -> None:
    listed = kubectl("api-resources", "--api-group=gemmatune.dev", "-o", "wide", "--no-headers").stdout.split()

    assert listed[:5] == [PLURAL, SHORT_NAME, "gemmatune.dev/v1alpha1", "true", "GemmaFineTune"]
    assert listed[-1] == ",".join(CATEGORIES)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("spec.dataset", "exactly one of the formats text, instruct, chat and imageText"),
        ("spec.dataset.maxLength", "Longest row in tokens, without those of its image. Default 1024."),
        ("spec.lora.targetModules", "all-linear, attention, or module names"),
        ("spec.limits.stallTimeout", "Longest time without a step or heartbeat. Default 15m."),
        ("status.progress", "How far training is; the trainer's field."),
    ],
)
def test_explain(field: str, words: str, crd: ControlPlane, kubectl: Kubectl) -> None:
    said = " ".join(kubectl("explain", f"{SHORT_NAME}.{field}").stdout.split())

    assert words in said


def test_every_field_of_spec_and_status_is_described() -> None:
    def walk(schema: dict[str, Any], place: str) -> None:
        for name, child in schema.get("properties", {}).items():
            assert child.get("description"), f"{place}.{name}"
            walk(child, f"{place}.{name}")
        if isinstance(schema.get("items"), dict):
            walk(schema["items"], f"{place}[]")

    walk(definition.spec_schema(), "spec")
    walk(definition.status_schema(), "status")


@pytest.mark.parametrize("outcome", ["Succeeded", "Failed"])
def test_wait_ends_for_both_outcomes(outcome: str, run: str, crd: ControlPlane, namespace: str) -> None:
    conditions = [
        {"type": kind, "status": "True", "reason": "x", "lastTransitionTime": "2026-01-02T03:04:05Z"}
        for kind in (outcome, ConditionType.FINISHED)
    ]
    crd.api.patch(f"{run}/status", {"status": {"conditions": conditions}})

    crd.kubectl("wait", "--for=condition=Finished", "--timeout=20s", "-n", namespace, f"{SHORT_NAME}/quotes")


def test_wait_goes_on_while_it_trains(run: str, crd: ControlPlane, namespace: str) -> None:
    answer = crd.kubectl(
        "wait", "--for=condition=Finished", "--timeout=1s", "-n", namespace, f"{SHORT_NAME}/quotes", check=False
    )

    assert answer.returncode != 0
    assert "timed out" in answer.stderr


def test_conditions_and_attempts_merge_by_their_key(run: str, crd: ControlPlane, namespace: str) -> None:
    for manager, kind in (("a", "Prepared"), ("b", "Training")):
        body = {
            "apiVersion": "gemmatune.dev/v1alpha1",
            "kind": "GemmaFineTune",
            "metadata": {"name": "quotes"},
            "status": {"conditions": [{"type": kind, "status": "True"}]},
        }
        crd.api.patch(f"{run}/status", body, "application/apply-patch+yaml", fieldManager=manager)

    kinds = [condition["type"] for condition in crd.api.get(run)["status"]["conditions"]]
    assert kinds == ["Accepted", "Prepared", "Training"]


def test_a_spec_write_leaves_the_status_and_a_status_write_the_spec(run: str, crd: ControlPlane) -> None:
    found = crd.api.get(run)
    crd.api.call("PUT", run, changed(found, {"status.phase": "Failed", "spec.limits": {"maxRetries": 1}}))
    crd.api.patch(f"{run}/status", {"spec": {"suspend": True}, "status": {"phase": "Queued"}})

    after = crd.api.get(run)
    assert after["status"]["phase"] == "Queued"
    assert after["spec"] == {**found["spec"], "limits": {"maxRetries": 1}}


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "A phase of a later version", "reason": "x" * 5000, "message": ""},
        {"plan": {"verdict": "perhaps", "weightsByBits": {"4": 2**40}}, "counters": {"retries": -1}},
        {"progress": {"loss": -1e30, "historySteps": [], "step": 0}},
        {"attempts": [{"number": 1}], "conditions": [{"type": "Unheard"}]},
        {"artifacts": {"sha256": ""}, "samples": [{"prompt": "p" * 10000}]},
        {"resolved": {"anything": [1, {"goes": None}]}},
    ],
)
def test_a_status_write_passes_whatever_it_says(status: dict[str, Any], run: str, crd: ControlPlane) -> None:
    crd.api.patch(f"{run}/status", {"status": status})


def test_a_status_list_has_its_limit(run: str, crd: ControlPlane) -> None:
    attempts = [{"number": number, "job": "x"} for number in range(21)]

    with pytest.raises(ApiError, match="must have at most 20 items"):
        crd.api.patch(f"{run}/status", {"status": {"attempts": attempts}})


def test_the_whole_status_is_stored(run: str, crd: ControlPlane) -> None:
    """No field of the models is pruned."""
    status = {
        "plan": {
            "backend": "torch",
            "method": "lora",
            "trainableParameters": 1,
            "mesh": {"data": 2},
            "microBatchSize": 1,
            "accumulation": 1,
            "gradientCheckpointing": False,
            "memory": {"weights": 1, "optimizer": 1, "activations": 1, "logits": 1, "total": 4, "capacity": 8},
            "weightsByBits": {"4": 1},
            "disk": 1,
            "verdict": "fits",
            "costPerHour": 0.5,
        },
        "attempts": [{"number": 1, "job": "quotes-t1", "overrides": {"microBatchSize": 1, "memory": 2**40}}],
        "checkpoint": {"step": 1, "uri": "gs://b/c"},
        "timers": {"activeSeconds": 1.5},
    }
    full = FineTuneStatus.model_validate(status).model_dump(by_alias=True, exclude_none=True)
    crd.api.patch(f"{run}/status", {"status": full})

    after = FineTuneStatus.model_validate(crd.api.get(run)["status"])
    assert after.model_dump(by_alias=True, include={"plan", "attempts", "checkpoint", "timers"}) == FineTuneStatus(
        **{
            name: getattr(FineTuneStatus.model_validate(full), name)
            for name in ("plan", "attempts", "checkpoint", "timers")
        }
    ).model_dump(by_alias=True, include={"plan", "attempts", "checkpoint", "timers"})


def test_older_objects_live_on_under_new_bounds(crd: ControlPlane, run: str) -> None:
    """An object that breaks a bound of a later release takes status writes and other changes of its spec."""
    name = f"{PLURAL}.gemmatune.dev"
    stored = crd.api.get(f"{DEFINITIONS}/{name}")
    spec = stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    accelerator = spec["properties"]["accelerator"]["properties"]["gpu"]
    accelerator["x-kubernetes-validations"] = [{"rule": "self.type != 'nvidia-l4'", "message": "no L4"}]

    def words() -> str:
        return crd.kubectl("create", "-f", "-", "--dry-run=server", input=resource("other"), check=False).stderr

    try:
        crd.api.call("PUT", f"{DEFINITIONS}/{name}", stored)
        wait_for(lambda: "no L4" in words(), "the new bound")
        crd.api.patch(f"{run}/status", {"status": {"phase": "Retrying"}})
        crd.api.patch(run, {"spec": {"suspend": True}})
    finally:
        crd.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=definition.definition())
        wait_for(lambda: not words(), "the definition without it")
