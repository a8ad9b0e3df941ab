"""The rules between fields: for each a spec that keeps it and one that breaks it."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import checks, checks_data, checks_pod
from gemmatune_api.defaults import resolve
from gemmatune_api.errors import Problem
from gemmatune_api.spec import FineTuneSpec
from tests.support.resources import MISSING, resource

Changes = dict[str, Any]

TPU = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4", "chipsPerNode": 4}}
CPU: Changes = {"spec.accelerator": {"cpu": {}}}
IMAGES: Changes = {
    "spec.backend": "keras",
    "spec.accelerator": {"cpu": {}},
    "spec.dataset.text": MISSING,
    "spec.dataset.imageText": {"image": "file", "prefix": "caption", "suffix": "{text}"},
}


def pod(**fields: Any) -> Changes:
    return {"spec.pod": fields}


def gpu(**fields: Any) -> Changes:
    return {"spec.accelerator": {"gpu": fields}}


def tpu(**fields: Any) -> Changes:
    return {"spec.accelerator": {"tpu": fields}}


def training(**fields: Any) -> Changes:
    return {"spec.training": fields}


def provisioning(**fields: Any) -> Changes:
    return {"spec.provisioning": fields}


def problems(changes: Changes) -> list[Problem]:
    return checks.problems(FineTuneSpec.model_validate(resource(changes=changes)["spec"], strict=True))


GOOD: dict[str, Changes] = {
    "the smallest": {},
    "model from a bucket": {"spec.model": {"uri": "gs://b/model"}},
    "model from a file": {"spec.model": {"uri": "file:///models/gemma"}},
    "model revision": {"spec.model.revision": "v2"},
    "kaggle token": {"spec.model": {"uri": "kaggle://google/gemma/keras/x", "secretRef": {"name": "kaggle"}}},
    "xla on tpu": {"spec.accelerator": TPU},
    "keras on cpu": {"spec.accelerator": {"cpu": {"devices": 4}}, "spec.backend": "keras", "spec.mesh": {"data": 4}},
    "torch on cpu": CPU,
    "a dataset repository of one name": {"spec.dataset.uri": "hf://imdb"},
    "split and configuration of a repository": {"spec.dataset.split": "test", "spec.dataset.config": "en"},
    "split train of a file": {"spec.dataset.uri": "gs://b/rows.jsonl", "spec.dataset.split": "train"},
    "images on keras": IMAGES,
    "braces in a template": {"spec.dataset.text.template": '{{"a": "{quote}"}}'},
    "evaluation by share": {"spec.dataset.evalFraction": 0.1, "spec.checkpoint": {"best": True}},
    "evaluation by file": {"spec.dataset.evalUri": "gs://b/e.jsonl", "spec.samples": {"fromEval": 2}},
    "best switched off": {"spec.checkpoint": {"best": False}},
    "qlora with types": {"spec.qlora": {"bits": 4, "quantType": "fp4", "doubleQuant": False}},
    "qlora on cpu": {**CPU, "spec.qlora": {}},
    "8 bits": {"spec.qlora": {"bits": 8}},
    "micro-batch of the default": training(microBatchSize=16),
    "micro-batch": training(globalBatchSize=12, microBatchSize=4),
    "constant without warm-up": training(schedule="constant", warmupSteps=0),
    "warm-up as long as the run": training(maxSteps=10, warmupSteps=10),
    "paged on gpu": training(optimizer="paged_adamw_32bit"),
    "8-bit on cpu": {**CPU, **training(optimizer="adamw_bnb_8bit")},
    "adafactor on tpu": {"spec.accelerator": TPU, **training(optimizer="adafactor")},
    "spot with fallback": provisioning(mode="spot", fallback={"afterPending": "1h"}),
    "reservation": provisioning(mode="reservation", reservation="r"),
    "output with dots in a name": {"spec.output.uri": "gs://b/v1..2"},
    "long prompts": {"spec.samples": {"prompts": ["x" * 4096] * 8}},
    "prompt as a block": {"spec.samples": {"prompts": ["a", {"text": "b"}]}},
    "prompt with an image": {**IMAGES, "spec.samples": {"prompts": [{"text": "b", "image": "gs://b/i.png"}]}},
    "GPUs that a machine has": gpu(type="nvidia-l4", count=8),
    "labels": pod(labels={"team": "nlp", "example.com/x": ""}, annotations={"note": "any text: {}"}),
    "tolerations": pod(tolerations=[{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoSchedule"}]),
    "toleration for a time": pod(
        tolerations=[{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]
    ),
    "resources": pod(resources={"requests": {"cpu": "500m", "memory": "1.5Gi"}, "limits": {"cpu": 1, "memory": "2e9"}}),
    "variables": pod(
        env=[
            {"name": "A"},
            {"name": "B", "value": ""},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        ]
    ),
    "ttl of nothing": {"spec.ttlAfterFinished": "0s"},
    "ten years": {"spec.limits": {"deadline": "3650d"}},
}

BAD: dict[str, tuple[Changes, str, str, str]] = {
    # rule: (changes, path, message, remedy)
    "model: hub without organisation": (
        {"spec.model.uri": "hf://gemma"},
        "spec.model.uri",
        "names no org",
        "hf://ORG/NAME",
    ),
    "model: hub with a folder": (
        {"spec.model.uri": "hf://a/b/c"},
        "spec.model.uri",
        "is no hf:// URI",
        "hf://ORG/NAME",
    ),
    "model: bucket without path": (
        {"spec.model": {"uri": "gs://b"}},
        "spec.model.uri",
        "is no gs:// URI",
        "gs://BUCKET/PATH",
    ),
    "model: relative file": (
        {"spec.model": {"uri": "file://m"}},
        "spec.model.uri",
        "is no file:// URI",
        "file:///PATH",
    ),
    "model: claim without path": (
        {"spec.model": {"uri": "pvc://c"}},
        "spec.model.uri",
        "is no pvc:// URI",
        "pvc://CLAIM",
    ),
    "model: line break": ({"spec.model": {"uri": "gs://b/a\nb"}}, "spec.model.uri", "control character", "Remove"),
    "model: revision of a bucket": (
        {"spec.model": {"uri": "gs://b/m", "revision": "v1"}},
        "spec.model.revision",
        "has no meaning with gs://",
        "Remove it",
    ),
    "model: token for a bucket": (
        {"spec.model": {"uri": "gs://b/m", "secretRef": {"name": "s"}}},
        "spec.model.secretRef",
        "uses the pod's ServiceAccount",
        "Remove it",
    ),
    "model: token for a file": (
        {"spec.model": {"uri": "file:///m", "secretRef": {"name": "s"}}},
        "spec.model.secretRef",
        "uses no token",
        "Remove it",
    ),
    "model: one key for kaggle": (
        {"spec.model": {"uri": "kaggle://google/gemma/keras/x", "secretRef": {"name": "s", "key": "k"}}},
        "spec.model.secretRef.key",
        "reads two keys, KAGGLE_USERNAME and KAGGLE_KEY",
        "Remove it",
    ),
    "backend: torch on tpu": (
        {"spec.accelerator": TPU, "spec.backend": "torch"},
        "spec.backend",
        "backend torch trains on gpu and cpu, not on tpu",
        "Use backend xla or keras",
    ),
    "backend: xla on gpu": (
        {"spec.backend": "xla"},
        "spec.backend",
        "backend xla trains on tpu and cpu, not on gpu",
        "Use backend torch",
    ),
    "backend: mesh with torch": ({"spec.mesh": {"data": 2}}, "spec.mesh", "belong to the xla and keras", "Remove it"),
    "backend: devices with torch": (
        {"spec.accelerator": {"cpu": {"devices": 4}}},
        "spec.accelerator.cpu.devices",
        "belong to the xla and keras",
        "Remove it",
    ),
    "dataset: no format": ({"spec.dataset.text": MISSING}, "spec.dataset", "exactly one of text, instruct", "Add one"),
    "dataset: two formats": (
        {"spec.dataset.chat": {}},
        "spec.dataset",
        "exactly one of text",
        "Keep one of text and chat",
    ),
    "dataset: images on torch": (
        {**IMAGES, "spec.backend": "torch"},
        "spec.dataset.imageText",
        "needs backend keras",
        "Set backend to keras",
    ),
    "dataset: configuration of a file": (
        {"spec.dataset.uri": "gs://b/d.jsonl", "spec.dataset.config": "en"},
        "spec.dataset.config",
        "has no meaning with gs://",
        "Remove it",
    ),
    "dataset: split of a file": (
        {"spec.dataset.uri": "file:///d.jsonl", "spec.dataset.split": "test"},
        "spec.dataset.split",
        "has no meaning with file://",
        "Remove it",
    ),
    "dataset: revision of a file": (
        {"spec.dataset.uri": "file:///d.jsonl", "spec.dataset.revision": "a"},
        "spec.dataset.revision",
        "has no meaning with file://",
        "Remove it",
    ),
    "dataset: token for a bucket": (
        {"spec.dataset.uri": "gs://b/d.jsonl", "spec.dataset.secretRef": {"name": "s"}},
        "spec.dataset.secretRef",
        "has no meaning with gs://",
        "Remove it",
    ),
    "dataset: bad evaluation URI": (
        {"spec.dataset.evalUri": "gs://b"},
        "spec.dataset.evalUri",
        "is no gs:// URI",
        "gs://BUCKET/PATH",
    ),
    "templates: open brace": (
        {"spec.dataset.text.template": "{quote} {"},
        "spec.dataset.text.template",
        "the brace at character 9 names no column",
        "{{ and }} for braces",
    ),
    "templates: closing brace": (
        {"spec.dataset.text.template": "{quote} }"},
        "spec.dataset.text.template",
        "the brace at character 9 closes nothing",
        "{{ and }} for braces",
    ),
    "templates: no name": (
        {"spec.dataset.text.template": "{}"},
        "spec.dataset.text.template",
        "names no column",
        "Write",
    ),
    "templates: no column at all": (
        {"spec.dataset.text.template": "Quote: {{quote}}"},
        "spec.dataset.text.template",
        "takes nothing from the row",
        "Name a column",
    ),
    "templates: suffix": (
        {**IMAGES, "spec.dataset.imageText": {"image": "i", "prefix": "p", "suffix": "}"}},
        "spec.dataset.imageText.suffix",
        "closes nothing",
        "Write",
    ),
    "evaluation: two sources": (
        {"spec.dataset.evalFraction": 0.1, "spec.dataset.evalUri": "gs://b/e.jsonl"},
        "spec.dataset",
        "at most one of evalFraction and evalUri",
        "Keep one",
    ),
    "evaluation: steps without rows": (
        training(evalEverySteps=5),
        "spec.training.evalEverySteps",
        "needs evaluation rows",
        "Set dataset.evalFraction",
    ),
    "evaluation: best without rows": (
        {"spec.checkpoint": {"best": True}},
        "spec.checkpoint.best",
        "needs evaluation rows",
        "Set dataset.evalFraction",
    ),
    "evaluation: samples without rows": (
        {"spec.samples": {"fromEval": 2}},
        "spec.samples.fromEval",
        "needs evaluation rows",
        "Set dataset.evalFraction",
    ),
    "method: two": ({"spec.lora": {}, "spec.full": {}}, "spec", "at most one of qlora, lora and full", "lora and full"),
    "method: qlora on tpu": (
        {"spec.accelerator": TPU, "spec.qlora": {}},
        "spec.qlora",
        "cannot run on a TPU",
        "Use lora, or accelerator.gpu",
    ),
    "method: qlora on xla": (
        {**CPU, "spec.backend": "xla", "spec.qlora": {}},
        "spec.qlora",
        "qlora needs backend torch",
        "Use lora, or backend torch",
    ),
    "method: type of 8 bits": (
        {"spec.qlora": {"bits": 8, "quantType": "nf4"}},
        "spec.qlora.quantType",
        "applies to bits 4 only",
        "Remove it",
    ),
    "method: double of 8 bits": (
        {"spec.qlora": {"bits": 8, "doubleQuant": False}},
        "spec.qlora.doubleQuant",
        "applies to bits 4 only",
        "Remove it",
    ),
    "training: steps and epochs": (
        training(maxSteps=1, epochs=1),
        "spec.training",
        "at most one of maxSteps",
        "Keep one",
    ),
    "training: micro-batch": (
        training(globalBatchSize=12, microBatchSize=5),
        "spec.training.microBatchSize",
        "must divide globalBatchSize 12",
        "Use 1, 2, 3, 4, 6 or 12",
    ),
    "training: micro-batch above the default": (
        training(microBatchSize=32),
        "spec.training.microBatchSize",
        "must divide globalBatchSize 16",
        "Use 1, 2, 4, 8 or 16",
    ),
    "training: warm-up of a constant": (
        training(schedule="constant", warmupSteps=2),
        "spec.training.warmupSteps",
        "schedule constant has no warm-up",
        "constant_with_warmup",
    ),
    "training: longer warm-up than run": (
        training(maxSteps=5, warmupSteps=6),
        "spec.training.warmupSteps",
        "is more than maxSteps 5",
        "Lower warmupSteps",
    ),
    "training: paged on cpu": (
        {**CPU, **training(optimizer="paged_adamw_8bit")},
        "spec.training.optimizer",
        "paged optimizers need a GPU",
        "Use adamw_bnb_8bit",
    ),
    "training: paged 32 bit on cpu": (
        {**CPU, **training(optimizer="paged_adamw_32bit")},
        "spec.training.optimizer",
        "paged optimizers need a GPU",
        "Use adamw_torch",
    ),
    "training: 8-bit on tpu": (
        {"spec.accelerator": TPU, **training(optimizer="adamw_bnb_8bit")},
        "spec.training.optimizer",
        "8-bit optimizers need backend torch",
        "Use adamw_torch",
    ),
    "checkpoint: two rhythms": (
        {"spec.checkpoint": {"everySteps": 1, "every": "1m"}},
        "spec.checkpoint",
        "at most one of everySteps and every",
        "Keep one",
    ),
    "output: a glob": ({"spec.output.uri": "gs://b/*"}, "spec.output.uri", "has a space", "Remove it"),
    "output: a space": ({"spec.output.uri": "gs://b/a b"}, "spec.output.uri", "has a space", "Remove it"),
    "output: upwards": (
        {"spec.output.uri": "file:///a/../b"},
        "spec.output.uri",
        "has a .. in its path",
        "Write the path",
    ),
    "samples: an image without images": (
        {"spec.samples": {"prompts": ["a", {"text": "b", "image": "i"}]}},
        "spec.samples.prompts[1].image",
        "has no meaning without dataset.imageText",
        "Remove it",
    ),
    "size: long prompts": (
        {"spec.samples": {"prompts": ["😀" * 4000] * 4}},
        "spec",
        "more than 57344 bytes of text together",
        "Shorten",
    ),
    "size: dollars": ({"spec.samples": {"prompts": ["$" * 4000] * 3}}, "spec", "more than 57344 bytes", "Shorten"),
    "accelerator: none": ({"spec.accelerator": {}}, "spec.accelerator", "exactly one of gpu, tpu and cpu", "Add one"),
    "accelerator: two": ({"spec.accelerator.cpu": {}}, "spec.accelerator", "exactly one of gpu, tpu", "gpu and cpu"),
    "accelerator: short GPU name": (gpu(type="l4"), "spec.accelerator.gpu.type", "is no GPU type", "Use nvidia-l4."),
    "accelerator: unheard GPU": (gpu(type="zzzz"), "spec.accelerator.gpu.type", "is no GPU type", "nvidia-tesla-t4"),
    "accelerator: TPU as GPU": (gpu(type="v5e"), "spec.accelerator.gpu.type", "is no GPU type", "nvidia-l4"),
    "accelerator: three GPUs": (
        gpu(type="nvidia-l4", count=3),
        "spec.accelerator.gpu.count",
        "no machine has that many nvidia-l4",
        "Use 1, 2, 4 or 8 per node",
    ),
    "accelerator: short TPU name": (
        tpu(type="v5e", topology="2x4"),
        "spec.accelerator.tpu.type",
        "is no TPU type",
        "Use tpu-v5-lite-podslice.",
    ),
    "accelerator: topology": (
        tpu(type="tpu-v5-lite-podslice", topology="3x5"),
        "spec.accelerator.tpu.topology",
        "has no slices of this topology",
        "Use 1x1, 2x2",
    ),
    "accelerator: shape left open": (
        tpu(type="tpu-v5-lite-podslice", topology="2x4"),
        "spec.accelerator.tpu.chipsPerNode",
        "comes in several shapes",
        "Set it to 8 or 4",
    ),
    "accelerator: impossible shape": (
        tpu(type="tpu-v5-lite-podslice", topology="2x4", chipsPerNode=3),
        "spec.accelerator.tpu.chipsPerNode",
        "has no such machines",
        "Use 8 or 4",
    ),
    "provisioning: reservation without name": (
        provisioning(mode="reservation"),
        "spec.provisioning.reservation",
        "needs its name",
        "Add the reservation",
    ),
    "provisioning: name without mode": (
        provisioning(reservation="r"),
        "spec.provisioning.reservation",
        "has no meaning with mode onDemand",
        "set mode to reservation",
    ),
    "provisioning: fallback without spot": (
        provisioning(mode="flexStart", fallback={}),
        "spec.provisioning.fallback",
        "only spot falls back",
        "set mode to spot",
    ),
    "labels: ours": (
        pod(labels={"gemmatune.dev/x": "a"}),
        'spec.pod.labels["gemmatune.dev/x"]',
        "the operator's",
        "of your own",
    ),
    "labels: our manager": (
        pod(labels={"app.kubernetes.io/managed-by": "me"}),
        'spec.pod.labels["app.kubernetes.io/managed-by"]',
        "the operator's",
        "of your own",
    ),
    "labels: our annotation": (
        pod(annotations={"gemmatune.dev/retry": "a"}),
        'spec.pod.annotations["gemmatune.dev/retry"]',
        "the operator's",
        "of your own",
    ),
    "labels: key": (pod(labels={"a b": "c"}), 'spec.pod.labels["a b"]', "a key has 1 to 63 letters", "Correct it"),
    "labels: prefix": (pod(labels={"A_/b": "c"}), 'spec.pod.labels["A_/b"]', "a domain name", "Correct it"),
    "labels: value": (pod(labels={"a": "b c"}), 'spec.pod.labels["a"]', "a label value has at most 63", "Correct it"),
    "labels: node selector": (
        pod(nodeSelector={"a": "-"}),
        'spec.pod.nodeSelector["a"]',
        "a label value",
        "Correct it",
    ),
    "labels: annotations too long": (
        pod(annotations={f"a{n}": "x" * 8192 for n in range(33)}),
        "spec.pod.annotations",
        "must have at most 262144 bytes",
        "Shorten",
    ),
    "tolerations: Equal without key": (
        pod(tolerations=[{"value": "a"}]),
        "spec.pod.tolerations[0]",
        "without a key needs operator Exists",
        "Set operator to Exists",
    ),
    "tolerations: Exists with value": (
        pod(tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]),
        "spec.pod.tolerations[0].value",
        "has no meaning with operator Exists",
        "Remove it",
    ),
    "tolerations: seconds": (
        pod(tolerations=[{"key": "a", "operator": "Exists", "tolerationSeconds": 5}]),
        "spec.pod.tolerations[0].tolerationSeconds",
        "without effect NoExecute",
        "Remove it",
    ),
    "tolerations: key": (
        pod(tolerations=[{"key": "a b", "operator": "Exists"}]),
        "spec.pod.tolerations[0]",
        "a key has 1 to 63",
        "Correct it",
    ),
    "resources: quantity": (
        pod(resources={"limits": {"memory": "16GB"}}),
        'spec.pod.resources.limits["memory"]',
        "is no quantity",
        "16Gi",
    ),
    "resources: negative": (
        pod(resources={"requests": {"cpu": -1}}),
        'spec.pod.resources.requests["cpu"]',
        "is no quantity",
        "Write such as 4",
    ),
    "resources: device": (
        pod(resources={"limits": {"nvidia.com/gpu": 2}}),
        'spec.pod.resources.limits["nvidia.com/gpu"]',
        "follows from spec.accelerator",
        "Remove it",
    ),
    "resources: name": (
        pod(resources={"limits": {"a b": 2}}),
        'spec.pod.resources.limits["a b"]',
        "a key has 1 to 63",
        "Correct the resource's name",
    ),
    "resources: above its limit": (
        pod(resources={"requests": {"memory": "2Gi"}, "limits": {"memory": "2000Mi"}}),
        'spec.pod.resources.requests["memory"]',
        "is more than the limit 2000Mi",
        "Lower it",
    ),
    "environment: reserved": (
        pod(env=[{"name": "GEMMATUNE_RUN"}]),
        "spec.pod.env[0].name",
        "are reserved",
        "another name",
    ),
    "environment: twice": (
        pod(env=[{"name": "A"}, {"name": "A"}]),
        "spec.pod.env[1].name",
        "repeats spec.pod.env[0]",
        "Remove",
    ),
    "environment: two sources": (
        pod(env=[{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
        "spec.pod.env[0]",
        "at most one of value and valueFrom",
        "Remove one",
    ),
    "environment: empty source": (
        pod(env=[{"name": "A", "valueFrom": {}}]),
        "spec.pod.env[0].valueFrom",
        "exactly one of secretKeyRef and configMapKeyRef",
        "Set one",
    ),
    "durations: nothing": (
        {"spec.limits": {"stallTimeout": "0m"}},
        "spec.limits.stallTimeout",
        "longer than 0s",
        "Write",
    ),
    "durations: no rhythm": ({"spec.checkpoint": {"every": "0s"}}, "spec.checkpoint.every", "longer than 0s", "Write"),
    "durations: a century": (
        {"spec.limits": {"deadline": "36500d"}},
        "spec.limits.deadline",
        "must be at most 3650d",
        "shorter",
    ),
    "durations: fallback": (
        provisioning(mode="spot", fallback={"afterPending": "0s"}),
        "spec.provisioning.fallback.afterPending",
        "longer than 0s",
        "Write",
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_good(case: str) -> None:
    assert [str(problem) for problem in problems(GOOD[case])] == []


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    changes, path, message, remedy = BAD[case]

    found = problems(changes)

    assert [problem.path for problem in found] == [path]
    assert message in found[0].message
    assert remedy in found[0].remedy


def test_every_rule_has_a_bad_case() -> None:
    rules = [rule.__name__ for rule in checks.RULES]

    assert set(rules) == {case.split(":")[0] for case in BAD}
    assert len(rules) == len(set(rules))


def test_every_rule_in_the_modules_is_in_the_table() -> None:
    public = {
        function
        for module in (checks_data, checks_pod)
        for name, function in vars(module).items()
        if not name.startswith("_") and getattr(function, "__module__", "") == module.__name__ and callable(function)
    }

    assert public <= set(checks.RULES)


def test_a_resolved_spec_passes_again() -> None:
    for case, changes in GOOD.items():
        spec = FineTuneSpec.model_validate(resource(changes=changes)["spec"], strict=True)
        assert [str(problem) for problem in checks.problems(resolve(spec))] == [], case
