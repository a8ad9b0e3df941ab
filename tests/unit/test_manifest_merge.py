"""The merge's Job: how much it asks for, and which image runs it whatever trained."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import catalog, defaults, fit, runconfig
from gemmatune_api.fit import merges
from gemmatune_api.memory import LARGEST_SHARD
from gemmatune_api.spec import FineTuneSpec, GemmaFineTune
from gemmatune_api.status import Overrides, PlanMerge
from gemmatune_operator.manifests import merge
from gemmatune_operator.manifests.quantities import GI, parse
from gemmatune_operator.settings import Settings
from tests.support.resources import Object, resource

MERGE = {"spec.output.merge": True}


def spec_of(changes: dict[str, Any]) -> FineTuneSpec:
    return defaults.resolve(FineTuneSpec.model_validate(resource(changes=changes)["spec"]))


def planned(model: str, **changes: Any) -> PlanMerge:
    found = catalog.by_name(model)
    assert found is not None
    plan = fit.plan(spec_of({**MERGE, **changes}), found, rows=1000).merge
    assert plan is not None
    return plan


def container(changes: dict[str, Any], needs: PlanMerge, overrides: Overrides | None = None) -> Object:
    spec = spec_of({**MERGE, **changes})
    meta = {"name": "quotes", "namespace": "team", "uid": "u"}
    run = GemmaFineTune.model_validate({**resource(), "metadata": meta}).model_copy(update={"spec": spec})
    config = runconfig.build(spec, runconfig.RunIdentity(**meta), 1, None)
    job = merge.job(run, config, needs, overrides or Overrides(), 1, Settings())
    found: Object = job["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("model", ["gemma-3-270m", "gemma-2-2b", "gemma-2-9b", "gemma-2-27b"])
def test_it_asks_for_one_model_in_16_bit_and_a_shard(model: str) -> None:
    found = catalog.by_name(model)
    assert found is not None
    weights, needs = 2 * found.parameters, planned(model)
    assert weights < needs.memory < weights + min(weights, LARGEST_SHARD) + 3.5 * GI
    base = found.stored_bytes * found.checkpoint_parameters
    assert base + weights < needs.disk < base + weights + 2 * GI


def test_a_base_in_a_folder_takes_no_disk() -> None:
    folder = {"spec.model": {"uri": "file:///models/gemma-2-9b"}}
    assert planned("gemma-2-9b").disk - planned("gemma-2-9b", **folder).disk > 16 * GI


def test_full_leaves_whole_weights_without_a_merge() -> None:
    full = spec_of({**MERGE, "spec.full": {}})
    assert not merges(full)
    model = catalog.by_name("gemma-2-2b")
    assert model is not None
    plan = fit.plan(full, model)
    assert plan.merge is None
    assert any(note.startswith("output.merge adds nothing") for note in plan.notes)


def test_limits_are_the_plan_with_headroom_or_what_was_granted() -> None:
    needs = PlanMerge(memory=20 * GI, disk=40 * GI)
    limits = container({}, needs)["resources"]["limits"]
    assert 20 * GI < parse(limits["memory"]) <= 26 * GI
    assert 40 * GI < parse(limits["ephemeral-storage"]) <= 52 * GI
    more = container({}, needs, Overrides(memory=64 * GI, ephemeral_storage=90 * GI))["resources"]
    assert more["limits"] == {"memory": "64Gi", "ephemeral-storage": "90Gi"}
    assert {**more["requests"], "cpu": "2"} == more["requests"]
    asked = container({"spec.pod": {"resources": {"limits": {"memory": "400Gi"}}}}, needs)["resources"]["limits"]
    assert asked == limits, "pod.resources speaks of the accelerator's nodes"


@pytest.mark.parametrize(
    ("changes", "image"),
    [
        ({}, "gemmatune-trainer-torch:latest"),
        ({"spec.pod": {"image": "mine:1"}}, "mine:1"),
        ({"spec.backend": "keras", "spec.lora": {}, "spec.pod": {"image": "mine:1"}}, "gemmatune-trainer-torch:latest"),
    ],
)
def test_torch_merges_whatever_trained(changes: dict[str, Any], image: str) -> None:
    found = container(changes, PlanMerge(memory=GI, disk=GI))
    assert found["image"] == image
    config = runconfig.RunConfig.from_env(
        next(item["value"] for item in found["env"] if item["name"] == "GEMMATUNE_RUN")
    )
    assert (config.backend, config.device) == ("torch", "cpu")
