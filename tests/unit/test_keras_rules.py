"""What is particular to backend keras at admission and in the plan."""

from __future__ import annotations

import pytest

from gemmatune_api import catalog, fit, memory
from gemmatune_api.defaults import resolve
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.names import Reason
from gemmatune_api.validate import parse
from tests.unit.test_every_field import KERAS, merged, with_value

BASE = {
    "model": {"uri": "hf://google/gemma-2-9b"},
    "dataset": {"uri": "file:///rows.jsonl", "text": {"template": "{a}"}},
    "output": {"uri": "file:///out"},
    "lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]},
}


def document(spec: object) -> dict[str, object]:
    head = {"apiVersion": "gemmatune.dev/v1alpha1", "kind": "GemmaFineTune", "metadata": {"name": "run"}}
    return {**head, "spec": spec}


def test_the_plan_counts_an_adapter_as_keras_trains_it_and_as_peft_reads_it() -> None:
    """KerasHub's count of rank 4 on queries and values of Gemma 2 9B is 14,536,704."""
    model = catalog.by_name("gemma-2-9b")
    assert model is not None
    spec = resolve(parse(document(merged(BASE, KERAS))).spec)
    found = fit.plan(spec, model)
    assert (found.trainable_parameters, found.exported_parameters) == (14_536_704, 28_213_248)
    plain = fit.plan(resolve(parse(document({**BASE, "accelerator": {"cpu": {}}})).spec), model)
    assert (plain.trainable_parameters, plain.exported_parameters) == (2_236_416, None)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("lora.dora", True, "has no DoRA"),
        ("lora.dropout", 0.1, "without dropout"),
        ("training.optimizer", "adafactor", "AdamW in fp32 alone"),
    ],
)
def test_what_keras_has_not_is_refused_with_the_remedy(path: str, value: object, words: str) -> None:
    spec = merged(BASE, KERAS)
    parse(document(spec))
    with pytest.raises(InvalidResourceError) as raised:
        parse(document(with_value(spec, path, value)))
    (problem,) = raised.value.problems
    assert problem.path == f"spec.{path}"
    assert words in problem.message
    assert problem.remedy
    parse(document(with_value({**BASE, "accelerator": {"cpu": {}}}, path, value)))


IMAGES = {
    **KERAS,
    "model": {"uri": "hf://google/paligemma-3b-pt-224"},
    "dataset": {"text": None, "imageText": {"image": "file", "prefix": "caption en", "suffix": "{a}"}, "maxLength": 64},
}


def siglip(image: int) -> dict[str, object]:
    """config.json of the 3B model for images of another size."""
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
    text = {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 257216,
    }
    return {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision | {"patch_size": 14, "image_size": image},
    }


def test_the_plan_counts_the_vision_tower_and_the_images_tokens() -> None:
    spec = resolve(parse(document(merged(BASE, IMAGES))).spec)
    small, large = (catalog.by_config(catalog.planner_shape(siglip(size))) for size in (224, 448))
    assert small is not None
    assert large is not None
    assert small == catalog.by_name("paligemma-3b")
    assert small.parameters == 2_923_466_480
    plans = [fit.plan(spec, model, rows=1000, longest=64, host_memory=64 << 30) for model in (small, large)]
    assert [note.split(" of its image")[0] for plan in plans for note in plan.notes if "of its image" in note] == [
        "Every row has 256 tokens",
        "Every row has 1024 tokens",
    ]
    assert plans[0].memory is not None
    assert plans[1].memory is not None
    assert plans[0].memory.weights >= 2 * small.parameters, "with the tower's 415 million"
    one = [memory.estimate(model, _one_row(model), 0).activations for model in (small, large)]
    assert one[1] > 2 * one[0]
    assert (plans[1].disk or 0) - (plans[0].disk or 0) >= 1000 * 3 * (448**2 - 224**2), "the rows' pixels"


def _one_row(model: catalog.GemmaModel) -> memory.Setting:
    tokens = model.vision.tokens if model.vision else 0
    return memory.Setting(method="lora", rows=1, length=64 + tokens, checkpointing=True, device="tpu", images=True)


def test_the_adapter_of_a_paligemma_is_not_merged_yet() -> None:
    with pytest.raises(InvalidResourceError) as raised:
        parse(document(with_value(merged(BASE, IMAGES), "output.merge", True)))
    (problem,) = raised.value.problems
    assert (problem.path, problem.reason) == ("spec.output.merge", Reason.NOT_SUPPORTED_YET)
    assert "merge_and_unload" in problem.remedy
