"""Host memory of pods with accelerators: what exceeds the machine is refused, with what would have enough."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gemmatune_api import accelerators, catalog, fit, pod_memory
from gemmatune_api.accelerators import GIB
from gemmatune_api.defaults import resolve
from gemmatune_api.names import API_VERSION, KIND
from gemmatune_api.quantity import parse as parse_quantity
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Plan
from gemmatune_api.validate import parse
from gemmatune_operator.manifests import resources
from gemmatune_operator.policies import describe, remedies

Object = dict[str, Any]
V5E_64: Object = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "8x8"}}
A100_8: Object = {"gpu": {"type": "nvidia-tesla-a100", "nodes": 8}}
SLICE: Object = {"backend": "keras", "accelerator": V5E_64, "training": {"globalBatchSize": 64}}
NODES: Object = {"model": {"uri": "hf://google/gemma-2-9b"}, "accelerator": A100_8}


def document(**changes: Any) -> Object:
    """Full tuning of Gemma 2 27B: masters and moments are 304 GiB; of the 9B they are 103."""
    found: Object = {
        "model": {"uri": "hf://google/gemma-2-27b"},
        "dataset": {"uri": "hf://a/b", "text": {"template": "{a}"}, "maxLength": 512},
        "output": {"uri": "gs://bucket/run"},
        "full": {},
    }
    return {key: value for key, value in (found | changes).items() if value is not None}


def plan(wanted: Object) -> Plan:
    """The plan of a document that is accepted."""
    spec = parse({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "run"}, "spec": wanted}).spec
    return _planned(resolve(spec))


def _planned(spec: FineTuneSpec) -> Plan:
    model = catalog.by_uri(spec.model.uri)
    assert model is not None
    return fit.plan(spec, model)


@pytest.mark.parametrize(
    ("changes", "machine", "others"),
    [
        (SLICE, ("tpu-v5-lite-podslice", 4), ["accelerator.tpu {type: tpu-v4-podslice, topology: 2x4x4}"]),
        (SLICE | {"mesh": {"data": 16}}, ("tpu-v5-lite-podslice", 4), ["accelerator.tpu {type: tpu-v4-podslice, "]),
        (NODES, ("nvidia-tesla-a100", 1), ["nvidia-a100-80gb"]),
    ],
    ids=["tpu", "tpu with a mesh", "gpu"],
)
def test_what_no_pod_gets_does_not_fit(changes: Object, machine: tuple[str, int], others: list[str]) -> None:
    """The devices have room, but the host that gathers a checkpoint has not: no attempt would outlive its first one."""
    found = plan(document(**changes))
    assert found.memory.total <= fit.FITS_SHARE * found.memory.capacity
    assert found.verdict == "does not fit"
    tpu = accelerators.tpu(machine[0])
    its = tpu.machine(machine[1]) if tpu else accelerators.machine_for(*machine, host_memory=found.host_memory)
    assert its is not None
    asked = resources.whole(its, found.disk).limits["memory"]
    assert found.host_capacity == parse_quantity(asked), "the limit that the pod will have"
    assert found.host_memory > found.host_capacity
    assert found.remedies[0] == "use lora"
    for words in others:
        assert any(remedy.startswith(words) for remedy in found.remedies), found.remedies


@pytest.mark.parametrize("changes", [SLICE, SLICE | {"mesh": {"data": 16}}, NODES], ids=["tpu", "mesh", "gpu"])
def test_each_remedy_makes_it_fit(changes: Object) -> None:
    wanted = document(**changes)
    for remedy in plan(wanted).remedies:
        assert plan(_with(wanted, remedy)).verdict == "fits", remedy


@pytest.mark.parametrize("short", [1, 0])
def test_the_next_machine_is_taken_before_the_last_gibibyte(short: int) -> None:
    """Where the pod of the smallest machine just suffices, and where it lacks a byte beside /dev/shm."""
    l4 = accelerators.gpu("nvidia-l4")
    assert l4 is not None
    of_one = sorted(machine.pod_memory for machine in l4.machines if machine.accelerators == 1)
    small, large = of_one[:2]
    need = small - pod_memory.gpu_shared(1) + short
    wanted = document(accelerator={"gpu": {"type": "nvidia-l4"}})
    head = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "run"}}
    spec = resolve(parse({**head, "spec": wanted}).spec)
    assert pod_memory.capacity(spec, need) == (large if short else small)


def _with(wanted: Object, remedy: str) -> Object:
    """The document with a remedy, by its text alone, as a person would write it."""
    if remedy.startswith("use "):
        return {key: value for key, value in wanted.items() if key != "full"} | {remedy.removeprefix("use "): {}}
    if remedy.startswith("nvidia-"):
        return wanted | {"accelerator": {"gpu": A100_8["gpu"] | {"type": remedy}}}
    found = re.fullmatch(r"accelerator\.tpu \{type: (\S+), topology: (\S+?)(?:, chipsPerNode: (\d))?\}(.*)", remedy)
    assert found is not None, remedy
    tpu = {"type": found[1], "topology": found[2]} | ({"chipsPerNode": int(found[3])} if found[3] else {})
    changed = wanted | {"accelerator": {"tpu": tpu}}
    return {key: value for key, value in changed.items() if key != "mesh" or found[4] != " without mesh"}


def test_the_other_machine_of_a_slice_is_a_remedy() -> None:
    """One host of eight chips has twice the memory of each of two."""
    spec = resolve(FineTuneSpec.model_validate(document(**SLICE | {"accelerator": _eight(4)})))
    texts = [text for text, _ in pod_memory.larger_hosts(spec)]
    assert "accelerator.tpu {type: tpu-v5-lite-podslice, topology: 2x4, chipsPerNode: 8}" in texts
    assert not any("tpu7x" in text for text in texts), "which is refused"
    for _, changed in pod_memory.larger_hosts(spec):
        plan(_plain(changed))  # which is accepted


def _eight(size: int) -> Object:
    return {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4", "chipsPerNode": size}}


def _plain(spec: FineTuneSpec) -> Object:
    return spec.model_dump(by_alias=True, exclude_none=True)


def test_the_numbers_are_named() -> None:
    found = plan(document(**SLICE))
    text = describe.verdict(found)
    assert f"each pod needs {found.host_memory / GIB:.1f} GiB of host memory, and gets 154.0 of its machine" in text
    assert f"{found.memory.total / GIB:.1f} of 14.9 GiB on each device" in text
    started = remedies.too_large(found.remedies, started=True)
    assert "with one of: use lora." in started, "the method is fixed once an attempt exists"
    assert "host memory" not in describe.verdict(plan(document(**SLICE, full=None, lora={})))


def test_what_a_user_asks_for_counts() -> None:
    """A TPU's machine has one size; of nodes with GPUs people may have larger ones than the catalog."""
    tpu = accelerators.tpu("tpu-v5-lite-podslice")
    machine = tpu.machine(4) if tpu else None
    assert machine is not None
    asked = {"resources": {"limits": {"memory": "400Gi"}}}
    assert plan(document(**SLICE, pod=asked)).host_capacity == machine.allocatable_memory
    own = plan(document(**NODES, pod=asked))
    assert (own.verdict, own.host_capacity) == ("fits", 400 * GIB)
    less = plan(document(**NODES, pod={"resources": {"requests": {"memory": "8Gi"}}}))
    assert less.host_capacity == plan(document(**NODES)).host_capacity, "an attempt that runs out is granted more"


def test_of_unknown_machines_nothing_is_said() -> None:
    unknown: Object = {"accelerator": {"gpu": {"type": "nvidia-l40", "count": 8}}, "training": {"globalBatchSize": 8}}
    found = _planned(resolve(FineTuneSpec.model_validate(document(**unknown))))
    assert (found.verdict, found.host_capacity) == ("fits", None)
    assert "host_capacity" not in found.model_dump(exclude_none=True)
    assert plan(document(model={"uri": "hf://google/gemma-3-270m"}, accelerator={"cpu": {}})).host_capacity is None
