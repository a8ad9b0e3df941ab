"""RunConfig: what goes in comes out, nothing for the kubelet to expand, and what decides the resumeHash."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import resume, runconfig, validate
from gemmatune_api.defaults import resolve
from gemmatune_api.runconfig import RUN_CONFIG_BYTES, RUN_CONFIG_VERSION, RunConfig, RunConfigError, RunIdentity
from gemmatune_api.status import Overrides, Plan, PlanMemory
from tests.support.resources import MISSING, resource

IDENTITY = RunIdentity(name="quotes", namespace="default", uid="u-1")
PLAN = Plan(
    backend="torch",
    method="qlora",
    trainable_parameters=1,
    micro_batch_size=2,
    accumulation=8,
    gradient_checkpointing=True,
    memory=PlanMemory(weights=1, optimizer=1, activations=1, logits=1, total=4, capacity=8),
    weights_by_bits={},
    disk=1,
    verdict="fits",
)


def built(
    changes: dict[str, Any] | None = None, overrides: Overrides | None = None, plan: Plan | None = PLAN
) -> RunConfig:
    spec = resolve(validate.parse(resource(changes=changes or {})).spec)
    return runconfig.build(spec, IDENTITY, 3, plan, overrides)


def test_the_defaults_of_the_smallest_resource() -> None:
    assert json.loads(built().to_env()) == {
        "version": RUN_CONFIG_VERSION,
        "run": {"name": "quotes", "namespace": "default", "uid": "u-1"},
        "attempt": 3,
        "backend": "torch",
        "device": "cuda",
        "model": {"uri": "hf://google/gemma-2-2b"},
        "dataset": {
            "uri": "hf://Abirate/english_quotes",
            "split": "train",
            "text": {"template": "Quote: {quote}\nAuthor: {author}"},
            "maxLength": 1024,
            "tooLong": "truncate",
            "packing": True,
        },
        "method": {
            "kind": "qlora",
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
            "microBatchSize": 2,
            "gradientCheckpointing": True,
            "sharded": False,
            "learningRate": 0.0002,
            "schedule": "cosine",
            "optimizer": "paged_adamw_8bit",
            "weightDecay": 0.0,
            "maxGradNorm": 1.0,
            "precision": "bf16",
            "seed": 42,
            "logEverySteps": 1,
        },
        "checkpoint": {"everySeconds": 600, "keep": 2, "best": False},
        "output": {"uri": "gs://my-bucket/quotes", "overwrite": False},
        "samples": {"prompts": [], "fromEval": 0, "maxNewTokens": 64},
        "stallSeconds": 900,
    }


def test_lora_on_cpu() -> None:
    config = built({"spec.accelerator": {"cpu": {}}, "spec.lora": {"rank": 4, "targetModules": ["q_proj"]}})

    assert (config.device, config.method.kind, config.method.alpha) == ("cpu", "lora", 8)
    assert config.method.target_modules == ["q_proj"]
    assert (config.method.quant_type, config.method.double_quant) == (None, None)
    assert config.training.optimizer == "adamw_torch"


def test_an_answer_to_out_of_memory_goes_over_the_plan() -> None:
    config = built(overrides=Overrides(micro_batch_size=1, gradient_checkpointing=False))

    assert (config.training.micro_batch_size, config.training.gradient_checkpointing) == (1, False)
    assert built().training.gradient_checkpointing is True


def test_a_preparation_needs_no_plan() -> None:
    assert built(plan=None).training.micro_batch_size == 1


texts = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=60)


@given(texts, st.lists(texts, max_size=4))
def test_what_goes_in_comes_out_and_the_kubelet_finds_nothing(template: str, prompts: list[str]) -> None:
    text = template.replace("{", "{{").replace("}", "}}") + "{quote} $(HOME) $$"
    config = built({"spec.dataset.text.template": text, "spec.samples": {"prompts": prompts}})

    env = config.to_env()

    assert "$" not in env
    assert RunConfig.from_env(env) == config
    # The kubelet expands $(NAME) and $$ and nothing else, so what it hands over is what was written.
    assert re.sub(r"\$\$|\$\([^)]*\)", "EXPANDED", env) == env


def test_too_large_a_configuration_is_refused() -> None:
    config = built()
    large = config.model_copy(update={"samples": config.samples.model_copy(update={"prompts": ["😀" * 4000] * 5})})

    with pytest.raises(RunConfigError, match=rf"has \d+ bytes, at most {RUN_CONFIG_BYTES} are possible"):
        large.to_env()


def test_every_spec_that_passes_the_checks_has_a_small_enough_configuration() -> None:
    prompts = ["\x01" * 1100] * 8
    dataset = {"uri": "hf://a/b", "text": {"template": "{a}"}, "config": "c" * 256, "revision": "r" * 256}

    env = built({"spec.samples": {"prompts": prompts}, "spec.dataset": dataset}).to_env()

    assert RUN_CONFIG_BYTES * 0.8 < len(env.encode()) <= RUN_CONFIG_BYTES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "has version None"),
        ('{"version": "1"}', "has version '1'"),
        ('{"version": 1}', "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(RunConfigError, match=words):
        RunConfig.from_env(text)


def test_a_newer_version_is_refused_with_the_remedy() -> None:
    data = {**json.loads(built().to_env()), "version": RUN_CONFIG_VERSION + 1}

    with pytest.raises(RunConfigError, match=r"this trainer reads up to \d+$"):
        RunConfig.from_env(json.dumps(data))


def test_a_field_that_this_trainer_does_not_know_is_refused() -> None:
    data = json.loads(built().to_env())
    data["training"]["later"] = 1

    with pytest.raises(RunConfigError, match=r"training\.later"):
        RunConfig.from_env(json.dumps(data))


def hashed(changes: dict[str, Any] | None = None, revision: str = "r", data: str = "d") -> str:
    return resume.resume_hash(built(changes), revision, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.model.uri": "hf://google/gemma-2-9b"},
        {"spec.qlora": {"rank": 4}},
        {"spec.qlora": {"alpha": 4}},
        {"spec.qlora": {"dropout": 0.1}},
        {"spec.qlora": {"targetModules": "attention"}},
        {"spec.qlora": {"dora": True}},
        {"spec.dataset.maxLength": 512},
        {"spec.dataset.packing": False},
        {"spec.training": {"globalBatchSize": 8}},
        {"spec.training": {"optimizer": "adafactor"}},
        {"spec.training": {"learningRate": 1e-4}},
        {"spec.training": {"schedule": "linear"}},
        {"spec.training": {"maxSteps": 5}},
        {"spec.training": {"epochs": 2}},
        {"spec.training": {"warmupSteps": 7}},
        {"spec.training": {"seed": 1}},
        {"spec.training": {"precision": "fp32"}},
        {"spec.training": {"weightDecay": 0.1}},
        {"spec.training": {"maxGradNorm": 2}},
        {"spec.dataset.evalFraction": 0.1, "spec.checkpoint": {"best": True, "everySteps": 5}},
    ],
)
def test_what_changes_the_result_changes_the_resume_hash(changes: dict[str, Any]) -> None:
    assert hashed(changes) != hashed()


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.lora": {}},
        {"spec.qlora": {"quantType": "fp4"}},
        {"spec.qlora": {"bits": 8}},
        {"spec.qlora": {"doubleQuant": False}},
        {"spec.training": {"microBatchSize": 1}},
        {"spec.training": {"gradientCheckpointing": False}},
        {"spec.training": {"optimizer": "adamw_torch"}},
        {"spec.training": {"logEverySteps": 5}},
        {"spec.accelerator": {"cpu": {}}},
        {"spec.provisioning": {"mode": "spot"}},
        {"spec.samples": {"prompts": ["a"]}},
        {"spec.limits": {"maxRetries": 9, "stallTimeout": "1h"}},
        {"spec.checkpoint": {"everySteps": 5}},
        {"spec.dataset.evalFraction": 0.1, "spec.training": {"evalEverySteps": 5}},
        {"spec.output.uri": "gs://elsewhere/x"},
        {"spec.model.secretRef": MISSING},
    ],
)
def test_what_leaves_the_result_alone_leaves_the_resume_hash(changes: dict[str, Any]) -> None:
    assert hashed(changes) == hashed()


def test_revision_and_data_change_the_resume_hash() -> None:
    assert len({hashed(), hashed(revision="other"), hashed(data="other")}) == 3
