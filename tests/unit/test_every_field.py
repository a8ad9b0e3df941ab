"""No option does nothing: every leaf of spec changes a manifest (or RunConfig in it), a decision, or is refused.

And what a manifest hands to the trainer is read there: every leaf of RunConfig.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import pytest
from pydantic.alias_generators import to_snake

import gemmatune_trainer
from gemmatune_api import names, validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.location import arms, is_model
from gemmatune_api.names import Reason
from gemmatune_api.runconfig import RunConfig, RunTraining
from gemmatune_api.spec import FineTuneSpec
from gemmatune_cli.planning import planned
from gemmatune_cli.render import objects
from gemmatune_operator.settings import Settings
from tests.support.decisions import DECISIONS
from tests.support.play import SPEC, Play

Object = dict[str, Any]

BASE: Object = {
    "model": {"uri": "hf://google/gemma-2-2b"},
    "dataset": {"uri": "hf://my-org/rows", "text": {"template": "{text}"}},
    "output": {"uri": "gs://bucket/run"},
    "accelerator": {"gpu": {"type": "nvidia-a100-80gb"}},
}
SECRET = {"secretRef": {"name": "hub"}}
INSTRUCT = {"dataset": {"text": None, "instruct": {}}}
CHAT = {"dataset": {"text": None, "chat": {}}}
TOLERATION = {"pod": {"tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute"}]}}
FROM_SECRET = {"pod": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}}
FROM_CONFIG = {"pod": {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]}}
PROMPT = {"samples": {"prompts": [{"text": "a"}]}}
CPU: Object = {"accelerator": {"gpu": None, "cpu": {}}}
TPU = {"accelerator": {"gpu": None, "tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}}}
TPU_OF_8 = {"accelerator": {"gpu": None, "tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4", "chipsPerNode": 8}}}
WANDB, MLFLOW = {"tracking": {"wandb": {"project": "a"}}}, {"tracking": {"mlflow": {"uri": "http://a"}}}
EVALUATED = {"dataset": {"evalFraction": 0.1}, "checkpoint": {"everySteps": 10}}
KERAS: Object = {"accelerator": {"gpu": None, "cpu": {"devices": 4}}, "backend": "keras"}
IMAGES: Object = {
    **KERAS,
    "model": {"uri": "hf://google/paligemma-3b-pt-224"},
    "dataset": {"text": None, "imageText": {"image": "file", "prefix": "caption en", "suffix": "{text}"}},
}
IMAGE_PROMPT = {**IMAGES, "samples": {"prompts": [{"text": "a", "image": "gs://bucket/a.png"}]}}
DEADLINE = {"limits": {"deadline": "1h"}}

MANIFESTS: dict[str, tuple[Object, Any]] = {
    "model.uri": ({}, "hf://google/gemma-2-9b"),
    "model.revision": ({}, "v2"),
    "model.secretRef.name": ({"model": SECRET}, "other"),
    "model.secretRef.key": ({"model": SECRET}, "token"),
    "dataset.uri": ({}, "hf://my-org/other"),
    "dataset.config": ({}, "en"),
    "dataset.split": ({}, "test"),
    "dataset.revision": ({}, "v2"),
    "dataset.secretRef.name": ({"dataset": SECRET}, "other"),
    "dataset.secretRef.key": ({"dataset": SECRET}, "token"),
    "dataset.limit": ({}, 10),
    "dataset.text.template": ({}, "{other}"),
    "dataset.instruct.instruction": (INSTRUCT, "question"),
    "dataset.instruct.input": (INSTRUCT, "context"),
    "dataset.instruct.output": (INSTRUCT, "answer"),
    "dataset.instruct.systemText": (INSTRUCT, "Be brief."),
    "dataset.chat.messages": (CHAT, "turns"),
    "dataset.chat.systemText": (CHAT, "Be brief."),
    "dataset.chat.train": (CHAT, "last"),
    "dataset.imageText.image": (IMAGES, "photo"),
    "dataset.imageText.prefix": (IMAGES, "answer en {question}"),
    "dataset.imageText.suffix": (IMAGES, "{label}"),
    "dataset.maxLength": ({}, 512),
    "dataset.tooLong": ({}, "drop"),
    "dataset.packing": ({}, False),
    "dataset.evalFraction": ({}, 0.1),
    "dataset.evalUri": ({}, "hf://my-org/eval"),
    "qlora.rank": ({}, 16),
    "qlora.alpha": ({}, 32),
    "qlora.dropout": ({}, 0.1),
    "qlora.targetModules": ({}, "attention"),
    "qlora.bits": ({}, 8),
    "qlora.dora": ({}, True),
    "qlora.quantType": ({}, "fp4"),
    "qlora.doubleQuant": ({}, False),
    "lora.rank": ({"lora": {}}, 16),
    "lora.alpha": ({"lora": {}}, 32),
    "lora.dropout": ({"lora": {}}, 0.1),
    "lora.targetModules": ({"lora": {}}, ["q_proj"]),
    "lora.dora": ({"lora": {}}, True),
    "full": ({}, {}),
    "training.maxSteps": ({}, 10),
    "training.epochs": ({}, 2),
    "training.globalBatchSize": ({}, 64),
    "training.microBatchSize": ({}, 1),
    "training.learningRate": ({}, 1e-5),
    "training.schedule": ({}, "linear"),
    "training.warmupSteps": ({}, 7),
    "training.optimizer": ({}, "adafactor"),
    "training.weightDecay": ({}, 0.1),
    "training.maxGradNorm": ({}, 0.3),
    "training.gradientCheckpointing": ({}, True),
    "training.precision": ({}, "fp32"),
    "training.seed": ({}, 7),
    "training.logEverySteps": ({}, 5),
    "training.evalEverySteps": (EVALUATED, 5),
    "checkpoint.everySteps": ({}, 5),
    "checkpoint.every": ({}, "5m"),
    "checkpoint.keep": ({}, 5),
    "checkpoint.best": (EVALUATED, True),
    "output.uri": ({}, "gs://bucket/other"),
    "output.merge": ({}, True),
    "output.overwrite": ({}, True),
    "samples.prompts": ({}, ["Who are you?"]),
    "samples.prompts[].text": (PROMPT, "b"),
    "samples.prompts[].image": (IMAGE_PROMPT, "gs://bucket/b.png"),
    "samples.maxNewTokens": ({}, 5),
    "samples.fromEval": (EVALUATED, 2),
    "accelerator.gpu.type": ({}, "nvidia-l4"),
    "accelerator.gpu.count": ({}, 2),
    "accelerator.gpu.nodes": ({}, 2),
    "provisioning.mode": ({}, "spot"),
    "provisioning.reservation": ({"provisioning": {"mode": "reservation", "reservation": "a"}}, "b"),
    "scheduling.queueName": ({}, "queue"),
    "scheduling.computeClass": ({}, "class"),
    "pod.image": ({}, "other:1"),
    "pod.imagePullSecrets[].name": ({"pod": {"imagePullSecrets": [{"name": "a"}]}}, "other"),
    "pod.serviceAccountName": ({}, "other"),
    "pod.priorityClassName": ({}, "high"),
    "pod.nodeSelector": ({}, {"a": "b"}),
    "pod.tolerations[].key": (TOLERATION, "other"),
    "pod.tolerations[].operator": (
        {"pod": {"tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}]}},
        "Exists",
    ),
    "pod.tolerations[].value": (TOLERATION, "other"),
    "pod.tolerations[].effect": (TOLERATION, "NoSchedule"),
    "pod.tolerations[].tolerationSeconds": (TOLERATION, 60),
    "pod.labels": ({}, {"a": "b"}),
    "pod.annotations": ({}, {"a": "b"}),
    "pod.resources.requests": ({}, {"cpu": "2"}),
    "pod.resources.limits": ({}, {"memory": "48Gi"}),
    "pod.env[].name": ({"pod": {"env": [{"name": "A", "value": "b"}]}}, "B"),
    "pod.env[].value": ({"pod": {"env": [{"name": "A", "value": "b"}]}}, "c"),
    "pod.env[].valueFrom.secretKeyRef.name": (FROM_SECRET, "other"),
    "pod.env[].valueFrom.secretKeyRef.key": (FROM_SECRET, "other"),
    "pod.env[].valueFrom.secretKeyRef.optional": (FROM_SECRET, True),
    "pod.env[].valueFrom.configMapKeyRef.name": (FROM_CONFIG, "other"),
    "pod.env[].valueFrom.configMapKeyRef.key": (FROM_CONFIG, "other"),
    "pod.env[].valueFrom.configMapKeyRef.optional": (FROM_CONFIG, True),
    "tracking.tensorboard": ({}, True),
    "tracking.wandb.project": (WANDB, "b"),
    "tracking.wandb.entity": (WANDB, "b"),
    "tracking.wandb.secretRef.name": ({"tracking": {"wandb": {"project": "a", **SECRET}}}, "b"),
    "tracking.wandb.secretRef.key": ({"tracking": {"wandb": {"project": "a", **SECRET}}}, "b"),
    "tracking.mlflow.uri": (MLFLOW, "http://b"),
    "tracking.mlflow.secretRef.name": ({"tracking": {"mlflow": {"uri": "http://a", **SECRET}}}, "b"),
    "tracking.mlflow.secretRef.key": ({"tracking": {"mlflow": {"uri": "http://a", **SECRET}}}, "b"),
    "limits.deadline": (DEADLINE, "2h"),
    "limits.pendingDeadline": (DEADLINE, "2h"),
    "backend": (CPU, "xla"),
    "accelerator.cpu.devices": (KERAS, 8),
    "accelerator.tpu.type": (TPU, "tpu-v6e-slice"),
    "accelerator.tpu.topology": (TPU, "1x1"),
    "mesh.data": (KERAS, 2),
    "mesh.model": (KERAS, 2),
}
"""Leaves that change what the operator creates: the spec around them, and another value."""

REFUSED: dict[str, tuple[Object, Any]] = {
    "accelerator.tpu.chipsPerNode": (TPU_OF_8, 4),
}
"""Leaves whose behaviour does not exist yet: the spec around them, and a value that is refused."""

ONE_VALUE = {"provisioning.fallback.mode"}
"""Leaves that can only have the value that they have by default."""


READ_WITH_RUNCONFIG = {"version"}
"""Leaves of RunConfig that RunConfig.from_env itself reads, which every trainer begins with."""


def leaves(model: type[Any], path: str = "") -> Iterator[str]:
    """Paths of all fields that hold no further fields; `[]` stands for the entries of a list."""
    for name, field in model.model_fields.items():
        yield from _below(field.annotation, f"{path}.{field.alias or name}".removeprefix("."))


def _below(annotation: Any, path: str) -> Iterator[str]:
    plain = False
    for arm in arms(annotation):
        entries = arms(get_args(arm)[0]) if get_origin(arm) is list else []
        if is_model(arm) and arm.model_fields:
            yield from leaves(arm, path)
            continue
        for entry in filter(is_model, entries):
            yield from leaves(entry, f"{path}[]")
        plain |= not (entries and all(map(is_model, entries)))
    if plain:
        yield path


def with_value(spec: Object, path: str, value: Any) -> Object:
    changed = copy.deepcopy(spec)
    block: Any = changed
    *parents, last = path.split(".")
    for part in parents:
        name = part.removesuffix("[]")
        block = block.setdefault(name, {})
        block = block[0] if part.endswith("[]") else block
    block[last] = value
    return changed


def merged(base: Object, patch: Object) -> Object:
    """The patch over the base; None takes a field away."""
    result = copy.deepcopy(base)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = copy.deepcopy(value)
    return result


def manifests(spec: Object) -> list[Object]:
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "run", "namespace": "default"},
        "spec": spec,
    }
    return list(objects(planned(validate.parse(document)), 1, Settings()))


def test_every_leaf_has_its_place() -> None:
    placed = [*MANIFESTS, *REFUSED, *DECISIONS, *ONE_VALUE]
    assert sorted(placed) == sorted(set(leaves(FineTuneSpec)))


@pytest.mark.parametrize("path", MANIFESTS)
def test_the_leaf_changes_what_is_created(path: str) -> None:
    around, value = MANIFESTS[path]
    spec = merged(BASE, around)
    assert manifests(with_value(spec, path, value)) != manifests(spec)


@pytest.mark.parametrize("path", REFUSED)
def test_the_leaf_is_refused(path: str) -> None:
    around, value = REFUSED[path]
    with pytest.raises(InvalidResourceError) as caught:
        manifests(with_value(merged(BASE, around), path, value))
    full = "spec." + path.replace("[]", "[0]")
    refusals = [problem.path for problem in caught.value.problems if problem.reason is Reason.NOT_SUPPORTED_YET]
    assert any(full == refused or full.startswith((f"{refused}.", f"{refused}[")) for refused in refusals), refusals


def attributes(tree: ast.AST) -> set[str]:
    """The names of all attributes that a program reads."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def read_by(package: ModuleType) -> set[str]:
    """The names of all attributes that the modules of a package read."""
    files = Path(package.__path__[0]).rglob("*.py")
    return set().union(*(attributes(ast.parse(file.read_text(encoding="utf-8"))) for file in files))


def attribute(path: str) -> str:
    """The name in Python of a leaf."""
    return to_snake(path.rpartition(".")[2])


@pytest.fixture(scope="module")
def read_by_trainer() -> set[str]:
    """What the trainer reads, also by way of RunTraining's methods."""
    found = read_by(gemmatune_trainer)
    for name, method in inspect.getmembers(RunTraining, inspect.isfunction):
        if method.__module__ == RunTraining.__module__ and name in found:
            found |= attributes(ast.parse(textwrap.dedent(inspect.getsource(method))))
    return found


@pytest.mark.parametrize("path", DECISIONS)
def test_the_leaf_decides(path: str) -> None:
    one, other, story, around = DECISIONS[path]
    first, again, second = (story(Play(with_value(merged(SPEC, around), path, value))) for value in (one, one, other))
    assert first == again
    assert first != second


@pytest.mark.parametrize("path", sorted(set(leaves(RunConfig)) - READ_WITH_RUNCONFIG))
def test_the_trainer_reads_the_leaf(path: str, read_by_trainer: set[str]) -> None:
    assert attribute(path) in read_by_trainer
