"""The CustomResourceDefinition on a real API server, through kubectl: what is accepted, what is refused and how."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from gemmatune_api import validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.names import Reason
from tests.support.resources import MISSING, resource

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("crd")]

Kubectl = Callable[..., CompletedProcess[str]]

GOOD: dict[str, dict[str, Any]] = {
    "the smallest": {},
    "instruct": {"spec.dataset.text": MISSING, "spec.dataset.instruct": {}},
    "chat": {"spec.dataset.text": MISSING, "spec.dataset.chat": {"train": "last"}},
    "imageText": {"spec.dataset.text": MISSING, "spec.dataset.imageText": {"image": "i", "prefix": "p", "suffix": "s"}},
    "cpu": {"spec.accelerator": {"cpu": {}}, "spec.model": {"uri": "file:///m"}, "spec.output.uri": "file:///o"},
    "tpu": {"spec.accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4"}}, "spec.backend": "xla"},
    "qlora in full": {
        "spec.qlora": {"rank": 4, "alpha": 32, "dropout": 0.1, "bits": 4, "quantType": "fp4", "doubleQuant": False}
    },
    "lora with modules": {"spec.lora": {"targetModules": ["q_proj", "v_proj"]}},
    "lora with attention": {"spec.lora": {"targetModules": "attention"}},
    "full": {"spec.full": {}},
    "training": {
        "spec.training": {
            "maxSteps": 10,
            "globalBatchSize": 4,
            "microBatchSize": 1,
            "warmupSteps": 2,
            "learningRate": 2e-4,
            "optimizer": "paged_adamw_8bit",
        }
    },
    "checkpoint by steps": {"spec.checkpoint": {"everySteps": 100, "keep": 1}},
    "checkpoint by time": {"spec.checkpoint": {"every": "1h30m"}},
    "prompts": {"spec.samples": {"prompts": ["Quote: Imagination is", {"text": "What?", "image": "gs://b/i.png"}]}},
    "spot": {"spec.provisioning": {"mode": "spot", "fallback": {"afterPreemptions": 2, "afterPending": "10m"}}},
    "reservation": {"spec.provisioning": {"mode": "reservation", "reservation": "mine"}},
    "limits": {"spec.limits": {"maxRetries": 0, "deadline": "12h", "maxCost": 10}},
    "pod": {
        "spec.pod": {
            "image": "trainer:1",
            "imagePullSecrets": [{"name": "pull"}],
            "nodeSelector": {"pool": "a"},
            "tolerations": [{"operator": "Exists"}],
            "labels": {"team": "nlp"},
            "resources": {"requests": {"cpu": "500m", "memory": "16Gi"}, "limits": {"cpu": 4}},
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
        }
    },
    "a whole number written 2.0": {"spec.training": {"maxSteps": 2.0}},
    "null for an absent field": {"spec.training": None},
}

BAD: dict[str, tuple[dict[str, Any], str]] = {
    # names
    "a name with capitals": ({"metadata.name": "Quotes"}, "lowercase RFC 1123"),
    "a name that begins with a digit": ({"metadata.name": "1quotes"}, "metadata.name must have at most 45 characters"),
    "a name with a dot": ({"metadata.name": "a.b"}, "hold only small letters, digits and -"),
    "a long name": ({"metadata.name": "a" * 46}, "metadata.name must have at most 45 characters"),
    # required
    "no model": ({"spec.model": MISSING}, "spec.model: Required value"),
    "no dataset": ({"spec.dataset": MISSING}, "spec.dataset: Required value"),
    "no accelerator": ({"spec.accelerator": MISSING}, "spec.accelerator: Required value"),
    "no spec": ({"spec": MISSING}, "spec: Required value"),
    "no template": ({"spec.dataset.text": {}}, "spec.dataset.text.template: Required value"),
    "no GPU type": ({"spec.accelerator.gpu": {"count": 1}}, "spec.accelerator.gpu.type: Required value"),
    # unions
    "no format": ({"spec.dataset.text": MISSING}, "spec.dataset: Invalid value: exactly one of text, instruct, chat"),
    "two formats": ({"spec.dataset.chat": {}}, "exactly one of text, instruct, chat and imageText is required"),
    "no kind of accelerator": ({"spec.accelerator": {}}, "exactly one of gpu, tpu and cpu is required"),
    "two kinds of accelerator": ({"spec.accelerator.cpu": {}}, "exactly one of gpu, tpu and cpu is required"),
    "two methods": ({"spec.lora": {}, "spec.full": {}}, "at most one of qlora, lora and full is possible"),
    "steps and epochs": (
        {"spec.training": {"maxSteps": 1, "epochs": 1}},
        "spec.training: Invalid value: at most one of maxSteps and epochs is possible",
    ),
    "two rhythms": ({"spec.checkpoint": {"everySteps": 1, "every": "1m"}}, "at most one of everySteps and every"),
    "two evaluations": (
        {"spec.dataset.evalFraction": 0.1, "spec.dataset.evalUri": "gs://b/e.jsonl"},
        "at most one of evalFraction and evalUri",
    ),
    "two sources of a variable": (
        {"spec.pod": {"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
        "spec.pod.env[0]: Invalid value: at most one of value and valueFrom is possible",
    ),
    "a source without a kind": (
        {"spec.pod": {"env": [{"name": "A", "valueFrom": {}}]}},
        "exactly one of secretKeyRef and configMapKeyRef is required",
    ),
    # what does not go together
    "qlora on a TPU": (
        {"spec.qlora": {}, "spec.accelerator": {"tpu": {"type": "t", "topology": "2x4"}}},
        "spec.qlora: Invalid value: qlora cannot run on a TPU; before the first attempt write its rank, "
        "alpha, dropout, targetModules and dora as lora: {...} in its place, afterwards take accelerator.gpu again",
    ),
    "xla on a GPU": (
        {"spec.backend": "xla"},
        "spec.backend: Invalid value: torch trains on gpu and cpu, xla and keras",
    ),
    "torch on a TPU": (
        {"spec.backend": "torch", "spec.accelerator": {"tpu": {"type": "t", "topology": "2x4"}}},
        "spec.backend: Invalid value: torch trains on gpu and cpu",
    ),
    "a batch that does not divide": (
        {"spec.training": {"globalBatchSize": 16, "microBatchSize": 3}},
        "spec.training.microBatchSize: Invalid value: must divide globalBatchSize",
    ),
    "a batch larger than the default": ({"spec.training": {"microBatchSize": 32}}, "must divide globalBatchSize"),
    "warm-up of a constant rate": (
        {"spec.training": {"schedule": "constant", "warmupSteps": 3}},
        "spec.training.warmupSteps: Invalid value: schedule constant has no warm-up",
    ),
    "a reservation without its mode": ({"spec.provisioning": {"reservation": "r"}}, "set both or neither"),
    "the mode without a reservation": ({"spec.provisioning": {"mode": "reservation"}}, "set both or neither"),
    "a fallback without spot": ({"spec.provisioning": {"fallback": {}}}, "only mode spot falls back"),
    "a reserved variable": (
        {"spec.pod": {"env": [{"name": "GEMMATUNE_RUN", "value": "{}"}]}},
        "spec.pod.env[0].name: Invalid value: names that begin with GEMMATUNE_ are reserved",
    ),
    # URI schemes
    "a model by https": (
        {"spec.model.uri": "https://h.co/m"},
        "must be an hf://, kaggle://, ms://, gs://, pvc:// or file:// URI",
    ),
    "a model without scheme": ({"spec.model.uri": "google/gemma-2-2b"}, "write a URI such as hf://google/gemma-2-2b"),
    "data by s3": (
        {"spec.dataset.uri": "s3://b/d"},
        'spec.dataset.uri: Invalid value: "s3://b/d": must be an hf://, ms://',
    ),
    "output to a hub": ({"spec.output.uri": "hf://me/x"}, "must be a gs:// or file:/// URI"),
    "output to a relative path": ({"spec.output.uri": "file://out"}, "must be a gs:// or file:/// URI"),
    # bounds and types
    "rank 0": ({"spec.lora": {"rank": 0}}, "spec.lora.rank in body should be greater than or equal to 1"),
    "dropout 1": ({"spec.lora": {"dropout": 1}}, "spec.lora.dropout in body should be less than 1"),
    "learning rate 0": ({"spec.training": {"learningRate": 0}}, "should be greater than 0"),
    "maxLength 8": ({"spec.dataset.maxLength": 8}, "should be greater than or equal to 16"),
    "nine prompts": ({"spec.samples": {"prompts": ["a"] * 9}}, "must have at most 8 items"),
    "a quoted number": ({"spec.training": {"maxSteps": "8"}}, "must be of type integer"),
    "half a step": ({"spec.training": {"maxSteps": 2.5}}, "must be of type integer"),
    "a truth value for a number": ({"spec.lora": {"rank": True}}, "must be of type integer"),
    "a text for a truth value": ({"spec.suspend": "yes"}, "must be of type boolean"),
    "an unknown backend": ({"spec.backend": "jax"}, 'supported values: "torch", "xla", "keras"'),
    "an unknown optimizer": ({"spec.training": {"optimizer": "sgd"}}, "supported values"),
    "bits 5": ({"spec.qlora": {"bits": 5}}, 'supported values: "4", "8"'),
    "a duration without unit": ({"spec.limits": {"deadline": "90"}}, "must be a duration: numbers with the units s, m"),
    "a topology in words": (
        {"spec.accelerator": {"tpu": {"type": "t", "topology": "eight"}}},
        "must be two or three numbers with x between them",
    ),
    "a Secret's name with capitals": (
        {"spec.model.secretRef": {"name": "HF"}},
        "must be the name of a Kubernetes object",
    ),
    "an empty template": ({"spec.dataset.text": {"template": ""}}, "should be at least 1 chars long"),
    "a preset that does not exist": ({"spec.lora": {"targetModules": "linear"}}, '"all-linear", "attention"'),
    "a number for targetModules": ({"spec.lora": {"targetModules": 5}}, '"all-linear", "attention"'),
    "no target modules": ({"spec.lora": {"targetModules": []}}, '"all-linear", "attention"'),
    "a number for a prompt": ({"spec.samples": {"prompts": [5]}}, "must validate at least one schema"),
    # unknown fields
    "an unknown field": ({"spec.dataset.maxLen": 5}, 'unknown field "spec.dataset.maxLen"'),
    "a field in the wrong place": ({"spec.rank": 8}, 'unknown field "spec.rank"'),
    "a field in Python's spelling": ({"spec.dataset.max_length": 64}, 'unknown field "spec.dataset.max_length"'),
}


@pytest.fixture(scope="module")
def space(make_namespace: Callable[..., str]) -> str:
    """One namespace for all of these: nothing is stored in it."""
    return make_namespace()


def create(kubectl: Kubectl, namespace: str, document: dict[str, Any]) -> CompletedProcess[str]:
    return kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", input=document, check=False)


@pytest.mark.parametrize("case", GOOD)
def test_good_resources_are_accepted(case: str, kubectl: Kubectl, space: str) -> None:
    answer = create(kubectl, space, resource(changes=GOOD[case]))

    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("case", BAD)
def test_bad_resources_are_refused_with_words(case: str, kubectl: Kubectl, space: str) -> None:
    changes, words = BAD[case]
    document = resource(changes=changes)

    answer = create(kubectl, space, document)

    assert answer.returncode != 0
    assert words in answer.stderr
    with pytest.raises(InvalidResourceError) as refusal:
        validate.parse(document)
    # `gft validate` finds the same fault, not only that something is not built yet.
    assert any(problem.reason is Reason.INVALID_SPEC for problem in refusal.value.problems)
