"""What is particular to backend keras at admission and in the plan."""

from __future__ import annotations

import pytest

from gemmatune_api import catalog, fit
from gemmatune_api.defaults import resolve
from gemmatune_api.errors import InvalidResourceError
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
