"""The planner: exact counts, choices, verdicts, verified remedies, and laws that every plan obeys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmatune_api import accelerators, catalog, fit, memory
from gemmatune_api.accelerators import GIB
from gemmatune_api.defaults import resolve
from gemmatune_api.memory import Setting
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import Plan


def spec(uri: str, gpu: str | None = None, **blocks: Any) -> FineTuneSpec:
    """A resolved spec of one GPU (of a CPU without one); `dataset` and other blocks are merged in."""
    document: dict[str, Any] = {
        "model": {"uri": f"hf://google/{uri}"},
        "output": {"uri": "gs://bucket/run"},
        "accelerator": {"gpu": {"type": gpu}} if gpu else {"cpu": {}},
    }
    dataset = {"uri": "hf://a/b", "text": {"template": "{quote}"}} | blocks.pop("dataset", {})
    return resolve(FineTuneSpec.model_validate(document | blocks | {"dataset": dataset}))


def plan(wanted: FineTuneSpec, **facts: Any) -> Plan:
    model = catalog.by_uri(wanted.model.uri)
    assert model is not None
    return fit.plan(wanted, model, **facts)


def test_plan_of_the_smallest_resource() -> None:
    found = plan(spec("gemma-2-2b", "nvidia-l4"))
    assert (found.backend, found.method, found.verdict, found.remedies) == ("torch", "qlora", "fits", [])
    assert (found.hosts, found.chips, found.total_steps, found.cost_per_hour) == (1, 1, None, None)
    assert found.trainable_parameters == 10_383_360
    assert found.micro_batch_size * found.accumulation == 16
    assert found.memory.capacity == accelerators.gpu("nvidia-l4").capacity  # type: ignore[union-attr]
    assert any("eager" in note for note in found.notes)
    assert any("1024 tokens" in note for note in found.notes)


def test_total_is_the_sum_of_its_parts() -> None:
    parts = plan(spec("gemma-3-4b-it", "nvidia-tesla-t4")).memory
    named = parts.weights + parts.gradients + parts.optimizer + parts.activations + parts.logits + parts.overhead
    assert parts.total == named


def test_weights_by_bits() -> None:
    model = catalog.by_name("gemma-2-2b")
    assert model is not None
    bits = fit.weights_by_bits(model)
    assert bits["32"] == 4 * model.parameters
    assert bits["16"] == 2 * model.parameters
    assert bits["16"] > bits["8"] > bits["4"] > 2 * model.embedding
    assert plan(spec("gemma-2-2b", "nvidia-l4")).weights_by_bits == bits


def test_experts_are_planned_in_16_bit() -> None:
    model = catalog.by_name("gemma-4-26b-a4b")
    assert model is not None
    assert fit.weights_by_bits(model)["4"] > 0.9 * fit.weights_by_bits(model)["16"]


def test_steps_need_the_rows_or_max_steps() -> None:
    assert plan(spec("gemma-3-270m"), rows=100).total_steps == 6
    assert plan(spec("gemma-3-270m", training={"maxSteps": 40})).total_steps == 40


def test_short_rows_give_larger_micro_batches_and_less_memory() -> None:
    unknown, short = plan(spec("gemma-3-270m")), plan(spec("gemma-3-270m"), rows=300, longest=31)
    assert short.micro_batch_size > unknown.micro_batch_size
    assert short.memory.total < unknown.memory.total
    assert not any("tokens long" in note for note in short.notes)


def test_rows_longer_than_max_length_are_cut() -> None:
    wanted = spec("gemma-3-270m", dataset={"maxLength": 128})
    assert plan(wanted, rows=300, longest=100_000).memory == plan(wanted).memory


def test_rows_beyond_the_context_are_planned_as_the_trainer_takes_them() -> None:
    wanted = spec("gemma-2-2b", "nvidia-l4", dataset={"maxLength": 131072})
    model = catalog.by_name("gemma-2-2b")
    assert model is not None
    assert fit.row_length(wanted, model, None) == model.context_length
    assert fit.row_length(wanted, model, 12_000) == 12_000
    assert plan(wanted, rows=100, longest=12_000).memory.total > plan(wanted, rows=100, longest=8192).memory.total
    assert any("longer rows are not cut there" in note for note in plan(wanted).notes)


def test_written_batch_settings_are_kept() -> None:
    training = {"microBatchSize": 4, "gradientCheckpointing": True, "globalBatchSize": 8}
    found = plan(spec("gemma-3-270m", "nvidia-l4", training=training))
    assert (found.micro_batch_size, found.accumulation, found.gradient_checkpointing) == (4, 2, True)


def test_checkpointing_is_chosen_where_memory_is_short() -> None:
    assert plan(spec("gemma-3-27b-it", "nvidia-tesla-a100")).gradient_checkpointing
    assert not plan(spec("gemma-3-270m", "nvidia-l4")).gradient_checkpointing


def test_several_gpus_share_the_global_batch() -> None:
    wanted = spec("gemma-3-1b-it", "nvidia-l4")
    gpu = wanted.accelerator.gpu
    assert gpu is not None
    several = wanted.model_copy(
        update={"accelerator": wanted.accelerator.model_copy(update={"gpu": gpu.model_copy(update={"count": 4})})}
    )
    found = plan(several, prices={"nvidia-l4": 0.7, "nvidia-b200": 9.0})
    assert (found.chips, found.micro_batch_size * found.accumulation) == (4, 4)
    assert found.cost_per_hour == pytest.approx(2.8)


def test_unknown_gpu_is_not_judged_but_named() -> None:
    found = plan(spec("gemma-2-2b", "nvidia-l40"))
    assert (found.verdict, found.memory.capacity) == ("fits", 0)
    assert any("nvidia-l4" in note for note in found.notes)


def test_t4_is_planned_with_fp32_activations() -> None:
    found = plan(spec("gemma-3-1b-it", "nvidia-tesla-t4", training={"microBatchSize": 1}))
    other = plan(spec("gemma-3-1b-it", "nvidia-l4", training={"microBatchSize": 1}))
    assert found.memory.activations > other.memory.activations
    assert any("no bf16" in note for note in found.notes)


def test_cpu_counts_host_memory() -> None:
    found = plan(spec("gemma-3-270m"), rows=300, longest=31)
    assert (found.method, found.verdict, found.memory.capacity) == ("lora", "fits", 0)
    assert found.host_memory == found.memory.total
    assert any("not checked" in note for note in found.notes)
    small = plan(spec("gemma-3-270m"), rows=300, longest=31, host_memory=GIB)
    assert small.verdict == "does not fit"
    needed = int(small.remedies[0].split()[0])
    assert plan(spec("gemma-3-270m"), rows=300, longest=31, host_memory=needed * GIB).verdict == "fits"


def test_disk_holds_the_published_files_unless_they_are_mounted() -> None:
    hub = plan(spec("gemma-2-2b", "nvidia-l4"), rows=10, longest=10)
    assert hub.disk > 4 * 2_614_341_888, "Gemma 2's base checkpoints are published in fp32"
    mounted = spec("gemma-2-2b", "nvidia-l4").model_copy(update={"model": _model("file:///models/gemma-2-2b")})
    assert plan(mounted, rows=10, longest=10).disk < 2 * GIB


def _model(uri: str) -> Any:
    return spec("gemma-2-2b").model.model_copy(update={"uri": uri})


DOES_NOT_FIT = [
    (spec("gemma-3-27b-it", "nvidia-tesla-a100", lora={}), "use qlora"),
    (spec("gemma-3-27b-it", "nvidia-tesla-a100", lora={}), "nvidia-a100-80gb"),
    (spec("gemma-2-9b", "nvidia-l4", dataset={"maxLength": 8192}), "dataset.maxLength 4096"),
    (
        spec("gemma-2-9b", "nvidia-l4", training={"gradientCheckpointing": False, "microBatchSize": 16}),
        "training.gradientCheckpointing true",
    ),
    (spec("gemma-2-27b-it", "nvidia-tesla-t4", lora={}), "nvidia-a100-80gb"),
    (spec("gemma-2-27b-it", "nvidia-tesla-t4", lora={}, dataset={"maxLength": 8192}), "use qlora and nvidia-"),
    (spec("gemma-4-31B", "nvidia-l4", dataset={"maxLength": 2048}), "nvidia-tesla-a100"),
]


@pytest.mark.parametrize(("wanted", "remedy"), DOES_NOT_FIT)
def test_remedies_are_named(wanted: FineTuneSpec, remedy: str) -> None:
    found = plan(wanted)
    assert found.verdict == "does not fit"
    assert any(text.startswith(remedy) for text in found.remedies), found.remedies
    assert 0 < len(found.remedies) <= 3


@pytest.mark.parametrize("wanted", [wanted for wanted, _ in DOES_NOT_FIT])
def test_each_remedy_makes_it_fit(wanted: FineTuneSpec) -> None:
    """The remedies are applied here by their text alone, as a person would."""
    for remedy in plan(wanted).remedies:
        changed = wanted
        for part in remedy.split(" and "):
            changed = apply(changed, part)
        assert plan(changed).verdict == "fits", remedy


def apply(wanted: FineTuneSpec, remedy: str) -> FineTuneSpec:
    """The spec with one remedy, through its document."""
    document = wanted.model_dump(by_alias=True, exclude_none=True)
    name, _, value = remedy.partition(" ")
    if remedy == "use qlora":
        document["qlora"] = document.pop("lora")
    elif name.startswith("nvidia-"):
        document["accelerator"]["gpu"]["type"] = name
    else:
        *blocks, field = name.split(".")
        block = document
        for part in blocks:
            block = block[part]
        block[field] = True if value == "true" else int(value)
    return resolve(FineTuneSpec.model_validate(document))


def on(count: int, nodes: int, wanted: FineTuneSpec) -> FineTuneSpec:
    """The spec on several GPUs."""
    for field, value in (("count", count), ("nodes", nodes)):
        wanted = apply(wanted, f"accelerator.gpu.{field} {value}")
    return wanted


@pytest.mark.parametrize(
    ("count", "nodes", "wanted", "sharded"),
    [
        (1, 1, spec("gemma-3-1b-it", "nvidia-a100-80gb", full={}), None),
        (2, 1, spec("gemma-2-2b", "nvidia-l4"), False),
        (2, 1, spec("gemma-2-2b", "nvidia-l4", lora={}), False),
        (1, 2, spec("gemma-3-1b-it", "nvidia-a100-80gb", full={}), True),
        (8, 1, spec("gemma-3-27b-it", "nvidia-l4", lora={}), True),  # 54 GB of weights on GPUs of 24
        (8, 1, spec("gemma-3-27b-it", "nvidia-l4", lora={"dora": True}), False),
    ],
)
def test_several_gpus_copy_or_divide(count: int, nodes: int, wanted: FineTuneSpec, sharded: bool | None) -> None:
    found = plan(on(count, nodes, wanted))
    assert found.sharded is sharded
    assert found.micro_batch_size * found.accumulation * count * nodes == 16
    assert (found.verdict == "fits") == (not (wanted.lora and wanted.lora.dora))


def test_divided_masters_shrink_with_the_gpus() -> None:
    """Weights, gradients and optimizer state are divided; what is whole for a moment is not."""
    wanted = spec("gemma-3-4b-it", "nvidia-a100-80gb", full={})
    two, eight = (plan(on(count, 1, wanted)).memory for count in (2, 8))
    model = catalog.by_name("gemma-3-4b")
    assert model is not None
    assert two.optimizer == 4 * eight.optimizer
    assert two.gradients - eight.gradients == pytest.approx(4 * model.text_parameters * (1 / 2 - 1 / 8), rel=0.01)
    assert two.weights - eight.weights == pytest.approx(4 * model.parameters * (1 / 2 - 1 / 8), rel=0.01)


def test_an_unresolved_spec_is_refused() -> None:
    raw = FineTuneSpec.model_validate(
        {
            "model": {"uri": "hf://google/gemma-2-2b"},
            "dataset": {"uri": "hf://a/b", "text": {"template": "{x}"}},
            "output": {"uri": "gs://b/x"},
            "accelerator": {"cpu": {}},
        }
    )
    with pytest.raises(ValueError, match="not resolved"):
        plan(raw)


MODELS = st.sampled_from(catalog.models())
SETTINGS = st.builds(
    Setting,
    method=st.sampled_from(["qlora", "lora", "full"]),
    rows=st.integers(1, 64),
    length=st.integers(16, 4096),
    checkpointing=st.booleans(),
    rank=st.integers(1, 256),
    targets=st.sampled_from(["all-linear", "attention"]),
    optimizer=st.sampled_from(["adamw_torch", "paged_adamw_8bit", "adafactor"]),
    precision=st.sampled_from(["bf16", "fp32"]),
    device=st.sampled_from(["cuda", "cpu"]),
    bf16=st.booleans(),
)


def total(model: catalog.GemmaModel, setting: Setting, **changes: Any) -> int:
    return memory.estimate(model, replace(setting, **changes), 0).total


@settings(deadline=None)
@given(MODELS, SETTINGS, st.integers(1, 64))
def test_more_never_takes_less(model: catalog.GemmaModel, setting: Setting, more: int) -> None:
    now = total(model, setting)
    assert total(model, setting, rows=setting.rows + more) >= now
    assert total(model, setting, length=setting.length + more) >= now
    assert total(model, setting, rank=setting.rank + more) >= now
    assert total(model, setting, all_logits=True) + 256 * model.vocab * 24 >= now


@settings(deadline=None)
@given(MODELS, SETTINGS)
def test_what_saves_memory_saves_memory(model: catalog.GemmaModel, setting: Setting) -> None:
    assert total(model, setting, checkpointing=True) <= total(model, setting, checkpointing=False)
    # On a CPU the checkpoint's pages stay mapped beside the quantised weights, so qlora may even take more there.
    on_gpu = replace(setting, device="cuda")
    assert total(model, on_gpu, method="qlora") < total(model, on_gpu, method="lora")
    assert total(model, setting, optimizer="paged_adamw_8bit") <= total(model, setting, optimizer="adamw_torch")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["gemma-2-2b", "gemma-3-270m", "gemma-3-27b-it", "gemma-4-E4B"]),
    st.sampled_from(["nvidia-tesla-t4", "nvidia-l4", "nvidia-a100-80gb", None]),
    st.integers(1, 128),
    st.sampled_from([16, 31, 512, 1024, 8192]),
    st.one_of(st.none(), st.integers(1, 20_000)),
)
def test_the_global_batch_is_cut_evenly(
    uri: str, gpu: str | None, batch: int, length: int, longest: int | None
) -> None:
    wanted = spec(uri, gpu, training={"globalBatchSize": batch}, dataset={"maxLength": length})
    found = plan(wanted, longest=longest)
    assert found.micro_batch_size * found.accumulation == batch
    assert found.verdict == _verdict(found)


def _verdict(found: Plan) -> str:
    used, capacity = found.memory.total, found.memory.capacity
    if not capacity or used <= 0.9 * capacity:
        return "fits"
    return "tight" if used <= capacity else "does not fit"
