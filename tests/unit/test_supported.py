"""What backends xla and keras train on in this version, and what is refused until it is built."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import accelerators
from gemmatune_api.errors import InvalidResourceError, Problem
from gemmatune_api.names import API_VERSION, KIND, Reason
from gemmatune_api.validate import parse
from gemmatune_cli.planning import planned

V4, V5E, V5P, V6E, V7X = (found.type for found in accelerators.tpus())


def document(accelerator: dict[str, Any], **changes: Any) -> dict[str, Any]:
    spec = {
        "model": {"uri": "hf://google/gemma-2-2b"},
        "dataset": {"uri": "hf://a/b", "text": {"template": "{a}"}},
        "output": {"uri": "gs://bucket/run"},
        "accelerator": accelerator,
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "run"}, "spec": {**spec, **changes}}


def tpu(kind: str, topology: str, chips_per_node: int | None = None) -> dict[str, Any]:
    chosen = {} if chips_per_node is None else {"chipsPerNode": chips_per_node}
    return {"tpu": {"type": kind, "topology": topology, **chosen}}


def problem(accelerator: dict[str, Any], **changes: Any) -> Problem:
    with pytest.raises(InvalidResourceError) as caught:
        parse(document(accelerator, **changes))
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize(
    ("accelerator", "chips"),
    [
        (tpu(V5E, "1x1"), 1),
        (tpu(V5E, "2x2"), 4),
        (tpu(V5E, "2x4", 8), 8),
        (tpu(V4, "2x2x1"), 4),
        (tpu(V5P, "2x2x1"), 4),
        (tpu(V6E, "2x2"), 4),
        ({"cpu": {"devices": 4}}, 4),
        ({"cpu": {}}, 1),
    ],
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_backend_xla_trains_on_the_chips_of_one_host(accelerator: dict[str, Any], chips: int, method: str) -> None:
    plan = planned(parse(document(accelerator, backend="xla", **{method: {}}))).plan
    assert (plan.backend, plan.method, plan.hosts, plan.chips) == ("xla", method, 1, chips)


def test_a_tpu_without_backend_trains_with_xla() -> None:
    plan = planned(parse(document(tpu(V5E, "2x2")))).plan
    assert (plan.backend, plan.method, plan.mesh) == ("xla", "lora", {"data": 4, "model": 1})


@pytest.mark.parametrize(
    ("accelerator", "remedy"),
    [
        (tpu(V5E, "4x4"), "topology 1x1, 2x2 or 2x4 with chipsPerNode 8"),
        (tpu(V5E, "2x4", 4), "topology 1x1, 2x2 or 2x4 with chipsPerNode 8"),
        (tpu(V4, "2x2x2"), "topology 2x2x1"),
        (tpu(V5P, "4x4x8"), "topology 2x2x1"),
    ],
)
def test_a_slice_of_several_hosts_is_refused_with_those_of_one(accelerator: dict[str, Any], remedy: str) -> None:
    found = problem(accelerator)
    assert (found.path, found.reason) == ("spec.accelerator.tpu", Reason.NOT_SUPPORTED_YET)
    assert found.message == "backend xla on slices of several hosts is not verified: no mesh over several hosts has run"
    assert accelerator["tpu"]["topology"] in found.found
    assert found.remedy == f"Use a slice of one host: {remedy}; or use backend keras."
    parse(document(accelerator, backend="keras"))


def test_backend_keras_is_no_remedy_for_a_model_that_it_does_not_train() -> None:
    with pytest.raises(InvalidResourceError) as caught:
        parse(document(tpu(V5E, "4x4"), model={"uri": "hf://google/gemma-4-E4B"}))
    by_path = {found.path: found.remedy for found in caught.value.problems}
    assert by_path.pop("spec.accelerator.tpu") == (
        "Use a slice of one host: topology 1x1, 2x2 or 2x4 with chipsPerNode 8."
    )
    assert by_path.keys() == {"spec.model.uri"}, "nor does xla train it"


def test_what_the_remedy_names_is_accepted() -> None:
    for found in accelerators.tpus():
        for topology, chips in found.of_one_host:
            assert found.hosts(topology, chips) == 1
            if found.type != V7X:
                parse(document(tpu(found.type, topology, chips)))


def test_chips_that_are_two_devices_each_are_refused() -> None:
    found = problem(tpu(V7X, "2x2x1"))
    assert (found.path, found.found, found.reason) == (
        "spec.accelerator.tpu.type",
        '"tpu7x"',
        Reason.NOT_SUPPORTED_YET,
    )


@pytest.mark.parametrize(
    ("accelerator", "mesh", "hosts", "found"),
    [
        (tpu(V5E, "1x1"), None, 1, (1, 1)),
        (tpu(V5E, "2x2"), {"data": 4}, 1, (4, 1)),
        (tpu(V5E, "2x4", 8), {"model": 8}, 1, (1, 8)),
        (tpu(V5E, "2x4", 4), None, 2, (8, 1)),
        (tpu(V5E, "4x4"), {"data": 2, "model": 8}, 4, (2, 8)),
        (tpu(V4, "2x2x4"), {"data": 2, "model": 8}, 4, (2, 8)),
        (tpu(V5P, "2x2x2"), {"model": 4}, 2, (2, 4)),
        (tpu(V6E, "4x4"), {"data": 2}, 4, (2, 8)),
        ({"cpu": {"devices": 4}}, None, 1, (4, 1)),
    ],
)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_backend_keras_trains_on_slices_of_one_and_of_several_hosts(
    accelerator: dict[str, Any], mesh: dict[str, int] | None, hosts: int, found: tuple[int, int], method: str
) -> None:
    chosen = {"mesh": mesh} if mesh else {}
    plan = planned(parse(document(accelerator, backend="keras", **{method: {}}, **chosen))).plan
    assert (plan.backend, plan.hosts, plan.chips) == ("keras", hosts, found[0] * found[1])
    assert plan.mesh == {"data": found[0], "model": found[1]}


@pytest.mark.parametrize("backend", ["xla", "keras"])
def test_chips_that_are_two_devices_each_are_refused_by_both(backend: str) -> None:
    found = problem(tpu(V7X, "2x2x1"), backend=backend)
    assert (found.path, found.reason) == ("spec.accelerator.tpu.type", Reason.NOT_SUPPORTED_YET)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"qlora": {}}, "spec.qlora"),
        ({"backend": "torch"}, "spec.backend"),
        ({"training": {"optimizer": "paged_adamw_8bit"}}, "spec.training.optimizer"),
        ({"training": {"optimizer": "adamw_bnb_8bit"}}, "spec.training.optimizer"),
        ({"mesh": {"data": 3, "model": 2}}, "spec.mesh"),
    ],
)
def test_what_a_tpu_can_never_do_is_a_contradiction(changes: dict[str, Any], path: str) -> None:
    found = problem(tpu(V5E, "2x2"), **changes)
    assert (found.path, found.reason) == (path, Reason.INVALID_SPEC)
    assert found.remedy
