"""What a chip holds where backend keras divides a model: exact weights, laws, and remedies that do fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gemmatune_api import catalog, fit, memory_devices, memory_mesh, memory_xla
from gemmatune_api.catalog import GemmaModel
from gemmatune_api.defaults import resolve
from gemmatune_api.layout import layouts
from gemmatune_api.memory import Setting
from gemmatune_api.runconfig import RunIdentity, build
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Plan

V5E = "tpu-v5-lite-podslice"
EIGHT = {"tpu": {"type": V5E, "topology": "2x4", "chipsPerNode": 8}}
LONG = {"uri": "hf://a/b", "text": {"template": "{a}"}, "maxLength": 8192}


def model(name: str) -> GemmaModel:
    found = catalog.by_name(name)
    assert found is not None
    return found


def spec(name: str, topology: str, **blocks: Any) -> FineTuneSpec:
    document: dict[str, Any] = {
        "model": {"uri": f"hf://google/{name}"},
        "dataset": {"uri": "hf://a/b", "text": {"template": "{a}"}, "maxLength": 512},
        "output": {"uri": "gs://bucket/run"},
        "backend": "keras",
        "accelerator": {"tpu": {"type": V5E, "topology": topology}},
        "lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]},
    }
    return resolve(FineTuneSpec.model_validate(document | blocks))


def plan(wanted: FineTuneSpec, **facts: Any) -> Plan:
    found = catalog.by_uri(wanted.model.uri)
    assert found is not None
    return fit.plan(wanted, found, **facts)


@pytest.mark.parametrize(
    ("longest", "limit", "length"), [(31, 512, 32), (32, 512, 32), (129, 512, 256), (600, 512, 512), (3, 2, 8)]
)
def test_lengths_are_rounded_up(longest: int, limit: int, length: int) -> None:
    assert memory_mesh.padded_length(longest, limit) == length


def test_what_is_divisible_is_divided_exactly() -> None:
    """Gemma 2 9B has 16 heads, 8 of keys: everything but its norms is divided by 16 chips."""
    found = model("gemma-2-9b")
    assert memory_mesh.divided(found, (2, 8)) * 16 == found.text_parameters + 15 * found.norms
    assert memory_mesh.divided(found, (1, 1)) == found.text_parameters


def test_what_is_not_divisible_stays_whole() -> None:
    """Gemma 3 270M: 4 heads and one of keys over 8 along model; the table and the feed-forward blocks are divided."""
    found = model("gemma-3-270m")
    attention = 18 * (2 * 640 * 4 * 256 + 2 * 640 * 1 * 256)
    rest = found.text_parameters - found.norms - attention
    assert memory_mesh.divided(found, (1, 8)) == attention + rest // 8 + found.norms
    assert memory_mesh.divided(found, (2, 4)) == _two_by_four(found)


def _two_by_four(found: GemmaModel) -> int:
    keys = 18 * 2 * 640 * 256
    queries = 18 * 2 * 640 * 4 * 256
    rest = found.text_parameters - found.norms - keys - queries
    return keys // 2 + queries // 8 + rest // 8 + found.norms


def test_an_adapter_and_its_moments_lie_on_every_chip() -> None:
    found = plan(spec("gemma-2-9b", "4x4", mesh={"data": 2, "model": 8}))
    assert found.trainable_parameters == 14_536_704
    assert found.memory.gradients == found.memory.optimizer == 8 * 14_536_704
    full = plan(spec("gemma-2-9b", "4x4", mesh={"data": 2, "model": 8}, lora=None, full={}))
    assert full.memory.optimizer == 8 * memory_mesh.divided(model("gemma-2-9b"), (2, 8))


def test_full_precision_takes_twice_the_weights() -> None:
    wide = plan(spec("gemma-2-9b", "4x4", mesh={"data": 1}, training={"precision": "fp32"})).memory.weights
    narrow = plan(spec("gemma-2-9b", "4x4", mesh={"data": 1}, training={"precision": "bf16"})).memory.weights
    assert wide - narrow == 2 * memory_mesh.divided(model("gemma-2-9b"), (1, 16))


def test_rows_are_as_long_as_the_longest_one() -> None:
    wanted = spec("gemma-2-9b", "4x4", training={"microBatchSize": 1, "gradientCheckpointing": False})
    unknown, short = plan(wanted), plan(wanted, rows=100, longest=60)
    assert short.memory.activations < unknown.memory.activations / 7
    assert plan(wanted, rows=100, longest=500).memory == unknown.memory


def test_more_along_model_takes_less_of_the_activations() -> None:
    training = {"microBatchSize": 1, "gradientCheckpointing": False}
    sizes = [
        plan(spec("gemma-2-9b", "4x4", mesh={"model": along}, training=training)).memory.activations
        for along in (1, 2, 4, 8)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (spec("gemma-2-9b", "2x2", lora=None, full={}), "accelerator.tpu.topology 4x8"),
        (
            spec("gemma-2-9b", "4x4", dataset=LONG, mesh={"data": 16}),
            "mesh {data: 4, model: 4}",
        ),
        (spec("gemma-2-9b", "1x1", backend="xla"), "accelerator.tpu.topology 2x2"),
        (spec("gemma-2-27b", "2x2", backend="xla"), "accelerator.tpu.topology 2x4 with chipsPerNode 8"),
    ],
    ids=["a larger slice", "more along model", "a larger slice for xla", "the shape of it that one host has"],
)
def test_what_does_not_fit_is_told_with_what_would(wanted: FineTuneSpec, words: str) -> None:
    found = plan(wanted)
    assert found.verdict != "fits"
    assert any(words in remedy for remedy in found.remedies), found.remedies


def test_a_paligemma_needs_its_tower_for_a_moment_on_every_chip() -> None:
    """Whole on each, whatever the mesh: images of 896 pixels take more then than the decoder keeps afterwards."""
    small = model("paligemma-3b")
    assert small.vision is not None
    large = replace(small, vision=replace(small.vision, image=896))
    assert large.vision is not None
    setting = Setting(
        method="lora", rank=4, rows=1, length=large.vision.tokens, device="tpu", checkpointing=True, images=True
    )
    moment = large.vision.moment(1, setting.activation_bytes)
    found = memory_mesh.estimate(large, setting, (1, 8), 1 << 40)
    without = memory_mesh.estimate(large, replace(setting, images=False), (1, 8), 1 << 40)
    assert without.activations + without.logits < moment <= found.activations + found.logits


@pytest.mark.parametrize("found", catalog.models(), ids=lambda found: found.name)
def test_the_parts_of_every_generation_add_up(found: GemmaModel) -> None:
    assert memory_mesh.divided(found, (1, 1)) == found.text_parameters
    assert found.text_parameters // 4 <= memory_mesh.divided(found, (2, 2)) < found.text_parameters


@pytest.mark.parametrize("name", ["gemma-3n-e2b", "gemma-4-e2b", "gemma-4-26b-a4b"])
def test_a_generation_that_keras_does_not_train_has_a_plan_all_the_same(name: str) -> None:
    """Of a model that its URI does not name, prepare tells the generation; the planner must not stumble over it."""
    found = fit.plan(spec("gemma-2-2b", "2x2"), model(name))
    assert found.memory.total > 2 * memory_mesh.divided(model(name), (4, 1))


def test_a_mesh_that_is_not_written_has_more_along_model_where_that_fits() -> None:
    """The usual mesh of 16 chips is 16 x 1, which does not fit: one that does is taken, and told to the trainer."""
    wanted = spec("gemma-2-9b", "4x4", dataset=LONG)
    found = plan(wanted)
    assert plan(spec("gemma-2-9b", "4x4", dataset=LONG, mesh={"data": 16})).verdict == "does not fit"
    assert (found.verdict, found.mesh, found.remedies) == ("fits", {"data": 4, "model": 4}, [])
    assert found.micro_batch_size * found.accumulation * 4 == 16
    config = build(wanted, RunIdentity(name="run", namespace="n", uid="u"), 1, found)
    assert config.mesh is not None
    assert (config.mesh.data, config.mesh.model) == (4, 4)
    usual = build(wanted, RunIdentity(name="run", namespace="n", uid="u"), 1, None).mesh
    assert usual is not None
    assert (usual.data, usual.model) == (16, 1)


def test_no_mesh_divides_a_micro_batch_that_is_written() -> None:
    wanted = spec("gemma-2-9b", "4x4", dataset=LONG, training={"globalBatchSize": 48, "microBatchSize": 3})
    assert [laid.mesh for laid in layouts(wanted)] == [(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)]
    uneven = spec("gemma-2-9b", "4x4", training={"globalBatchSize": 48, "microBatchSize": 1}, mesh={"model": 2})
    assert [laid.mesh for laid in layouts(uneven)] == [(8, 2)]


@pytest.mark.parametrize("found", catalog.models(), ids=lambda found: found.name)
def test_xla_divides_every_matrix_and_leaves_the_rest_whole(found: GemmaModel) -> None:
    """Experts are no matrices, vectors too small: the rest of every generation is divisible by two chips."""
    whole = found.norms + found.expert_weights
    assert memory_xla.divided(found, (1, 1)) == found.text_parameters
    assert memory_xla.divided(found, (2, 1)) == (found.text_parameters - whole) // 2 + whole


def test_xla_gathers_along_data_what_keras_gathers() -> None:
    wanted = spec("gemma-2-27b", "2x4", backend="xla", accelerator=EIGHT, mesh={"data": 8}, lora={})
    base, found = model("gemma-2-27b"), plan(wanted).memory
    layer = base.linear // base.layers
    parts = found.weights - 2 * memory_xla.divided(base, (8, 1)) - found.gradients // 2
    assert parts == 2 * (base.embedding + 2 * layer), "the table, a layer, and the next one on its way"
    along = spec("gemma-2-27b", "2x4", backend="xla", accelerator=EIGHT, mesh={"model": 8}, lora={})
    assert plan(along).memory.weights < found.weights - parts // 2


def test_small_matrices_of_an_adapter_are_whole_on_every_chip_of_xla() -> None:
    """Rank 4 of Gemma 2 2B has 4 x 2304 numbers at most in A, below the 65,536 from which they are divided."""
    small = spec("gemma-2-2b", "2x2", backend="xla", lora={"rank": 4, "targetModules": ["q_proj", "v_proj"]})
    wide = spec("gemma-2-2b", "2x2", backend="xla", lora={"rank": 64, "targetModules": ["q_proj", "v_proj"]})
    one, many = plan(small), plan(wide)
    assert one.memory.optimizer == 8 * one.trainable_parameters
    assert many.memory.optimizer == 8 * many.trainable_parameters // 4
    assert one.memory.gradients == one.memory.optimizer


def test_adafactor_of_xla_keeps_rows_and_columns_on_every_chip() -> None:
    chosen = {"optimizer": "adafactor"}
    two, four = (plan(spec("gemma-2-2b", topology, backend="xla", training=chosen)) for topology in ("1x1", "2x2"))
    assert two.memory.optimizer == four.memory.optimizer > 0


@pytest.mark.parametrize("backend", ["xla", "keras"])
def test_a_cpu_holds_what_all_its_virtual_devices_hold(backend: str) -> None:
    """One process has them all: eight groups along data keep eight rows, and eight copies of what is whole."""
    training = {"globalBatchSize": 8, "microBatchSize": 1, "gradientCheckpointing": False}
    blocks = {"backend": backend, "training": training, "lora": {}}
    one, eight = (plan(spec("gemma-3-1b", "", accelerator={"cpu": {"devices": n}}, **blocks)) for n in (1, 8))
    assert (one.accumulation, eight.accumulation, eight.mesh) == (8, 1, {"data": 8, "model": 1})
    assert eight.memory.activations >= 7 * one.memory.activations
    assert eight.memory.logits == 8 * one.memory.logits
    assert eight.memory.overhead == one.memory.overhead, "Python and its libraries are there once"
    assert eight.memory.weights > one.memory.weights, "what is gathered, and the adapter"
    assert eight.host_memory == eight.memory.total


def test_the_tower_of_a_paligemma_is_on_every_virtual_device() -> None:
    found = model("paligemma-3b")
    setting = Setting(method="lora", rank=8, rows=1, length=320, device="cpu", checkpointing=True, images=True)
    one, eight = (memory_devices.estimate("keras", found, setting, mesh, 0) for mesh in ((1, 1), (2, 4)))
    assert eight.weights - one.weights > 2 * 7 * found.towers
    assert eight.total > 15 << 30
