"""The table of defaults is what the documentation says, and resolving is complete and repeatable."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import validate
from gemmatune_api.base import duration_text, seconds
from gemmatune_api.defaults import resolve, total_steps, warmup_steps
from gemmatune_api.location import arms, is_model
from gemmatune_api.spec import FineTuneSpec, TrainingSpec
from tests.support.resources import resource


def resolved(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    spec = validate.parse(resource(changes=changes or {})).spec
    return resolve(spec).model_dump(by_alias=True, exclude_none=True)


def test_the_whole_table() -> None:
    assert resolved() == {
        "model": {"uri": "hf://google/gemma-2-2b", "secretRef": {"name": "hf-token"}},
        "backend": "torch",
        "dataset": {
            "uri": "hf://Abirate/english_quotes",
            "split": "train",
            "text": {"template": "Quote: {quote}\nAuthor: {author}"},
            "maxLength": 1024,
            "tooLong": "truncate",
            "packing": True,
        },
        "qlora": {
            "rank": 8,
            "alpha": 16,
            "dropout": 0.0,
            "targetModules": "all-linear",
            "dora": False,
            "bits": 4,
            "quantType": "nf4",
            "doubleQuant": True,
        },
        "training": {
            "epochs": 1.0,
            "globalBatchSize": 16,
            "learningRate": 2e-4,
            "schedule": "cosine",
            "optimizer": "paged_adamw_8bit",
            "weightDecay": 0.0,
            "maxGradNorm": 1.0,
            "precision": "bf16",
            "seed": 42,
            "logEverySteps": 1,
        },
        "checkpoint": {"every": "10m", "keep": 2, "best": False},
        "output": {"uri": "gs://my-bucket/quotes", "merge": False, "overwrite": False},
        "samples": {"prompts": [], "maxNewTokens": 64},
        "accelerator": {"gpu": {"type": "nvidia-l4", "count": 1, "nodes": 1}},
        "provisioning": {"mode": "onDemand"},
        "limits": {"maxRetries": 3, "maxPreemptions": 20, "pendingDeadline": "24h", "stallTimeout": "15m"},
        "suspend": False,
    }


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"spec.lora": {"rank": 32}}, "lora.alpha", 64),
        ({"spec.lora": {"rank": 32, "alpha": 8}}, "lora.alpha", 8),
        ({"spec.lora": {}}, "training.optimizer", "adamw_torch"),
        ({"spec.accelerator": {"cpu": {}}}, "lora.rank", 8),
        ({"spec.accelerator": {"cpu": {}}, "spec.qlora": {}}, "training.optimizer", "adamw_torch"),
        ({"spec.training": {"maxSteps": 100}}, "training.warmupSteps", 3),
        ({"spec.training": {"maxSteps": 9}}, "training.warmupSteps", 0),
        ({"spec.training": {"maxSteps": 100, "warmupSteps": 0}}, "training.warmupSteps", 0),
        ({"spec.checkpoint": {"everySteps": 5}}, "checkpoint.everySteps", 5),
        ({"spec.provisioning": {"mode": "spot"}}, "provisioning.fallback.afterPreemptions", 3),
        ({"spec.provisioning": {"mode": "spot"}}, "provisioning.fallback.afterPending", "30m"),
        ({"spec.provisioning": {"mode": "spot"}}, "provisioning.fallback.mode", "onDemand"),
        ({"spec.output.uri": "gs://b/x//"}, "output.uri", "gs://b/x"),
        ({"spec.dataset.text": None, "spec.dataset.instruct": {}}, "dataset.instruct.output", "output"),
        ({"spec.dataset.text": None, "spec.dataset.chat": {}}, "dataset.chat.train", "all"),
    ],
)
def test_defaults_that_depend(changes: dict[str, Any], path: str, value: object) -> None:
    found: Any = resolved(changes)
    for part in path.split("."):
        found = found[part]

    assert found == value


@pytest.mark.parametrize(
    ("changes", "block", "absent"),
    [
        ({"spec.training": {"maxSteps": 10}}, "training", "epochs"),
        ({"spec.checkpoint": {"everySteps": 5}}, "checkpoint", "every"),
        ({}, "provisioning", "fallback"),
        ({}, "training", "warmupSteps"),
    ],
)
def test_what_is_excluded_or_known_later_gets_no_default(changes: dict[str, Any], block: str, absent: str) -> None:
    assert absent not in resolved(changes)[block]


def test_full_tuning_has_a_lower_learning_rate() -> None:
    spec = FineTuneSpec.model_validate(resource(changes={"spec.full": {}})["spec"])

    assert (resolve(spec).training or TrainingSpec()).learning_rate == 1e-5


def test_resolving_twice_changes_nothing() -> None:
    for changes in ({}, {"spec.lora": {}}, {"spec.provisioning": {"mode": "spot"}}, {"spec.accelerator": {"cpu": {}}}):
        spec = validate.parse(resource(changes=changes)).spec
        assert resolve(resolve(spec)) == resolve(spec)


def test_the_descriptions_name_the_defaults() -> None:
    """Every constant default in the table is said in the field's own docstring."""
    defaults = resolved({"spec.provisioning": {"mode": "spot"}})
    given = {**resource()["spec"], "provisioning": {"mode": "spot"}}

    def walk(model: Any, block: dict[str, Any], written: Any, path: str) -> None:
        for name, field in model.model_fields.items():
            wire = field.alias or name
            value = block.get(wire)
            inner = next((arm for arm in arms(field.annotation) if is_model(arm)), None)
            if inner is not None and isinstance(value, dict):
                walk(inner, value, (written or {}).get(wire), f"{path}.{wire}")
            elif value is not None and wire not in (written or {}) and wire not in ("prompts", "alpha", "learningRate"):
                text = (
                    str(value).lower()
                    if isinstance(value, bool)
                    else f"{value:g}"
                    if isinstance(value, float)
                    else str(value)
                )
                said = (field.description or "").split("Default", 1)[-1]
                assert text in said, f"{path}.{wire}: {value} is not in {field.description!r}"

    walk(FineTuneSpec, defaults, given, "spec")


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (9, 0), (10, 1), (33, 1), (34, 2), (100, 3), (1000, 30)])
def test_warm_up(steps: int, warmup: int) -> None:
    assert warmup_steps(steps) == warmup


@pytest.mark.parametrize(
    ("training", "rows", "steps"),
    [
        ({"max_steps": 7}, None, 7),
        ({"epochs": 2, "global_batch_size": 10}, 105, 20),
        ({"epochs": 0.5, "global_batch_size": 10}, 100, 5),
        ({"epochs": 0.01, "global_batch_size": 10}, 100, 1),
        ({"epochs": 3, "global_batch_size": 10}, 9, 0),
        ({"epochs": 1}, None, None),
        ({}, 32, 2),
    ],
)
def test_steps(training: dict[str, Any], rows: int | None, steps: int | None) -> None:
    assert total_steps(TrainingSpec(**training), rows) == steps


@pytest.mark.parametrize(("text", "number"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("0s", 0)])
def test_durations(text: str, number: int) -> None:
    assert seconds(text) == number


@pytest.mark.parametrize("text", ["", "5", "1w", "-5m", "1.5h", "5m\n", "m", "5 m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0s"), (59, "59s"), (4320, "1h12m"), (3605, "1h"), (90061, "1d1h"), (-5, "0s")]
)
def test_durations_as_text(number: int, text: str) -> None:
    assert duration_text(number) == text
