"""The rules for model, dataset and output: specs that keep and break each."""

from __future__ import annotations

from typing import Any

from tests.support.resources import MISSING
from tests.support.rules_images import IMAGES

Changes = dict[str, Any]


GOOD: dict[str, Changes] = {
    "model from a bucket": {"spec.model": {"uri": "gs://b/model"}},
    "model from a file": {"spec.model": {"uri": "file:///models/gemma"}},
    "model revision": {"spec.model.revision": "v2"},
    "kaggle token": {"spec.model": {"uri": "kaggle://google/gemma/transformers/x", "secretRef": {"name": "kaggle"}}},
    "a dataset repository of one name": {"spec.dataset.uri": "hf://imdb"},
    "split and configuration of a repository": {"spec.dataset.split": "test", "spec.dataset.config": "en"},
    "split train of a file": {"spec.dataset.uri": "gs://b/rows.jsonl", "spec.dataset.split": "train"},
    "braces in a template": {"spec.dataset.text.template": '{{"a": "{quote}"}}'},
    "output with dots in a name": {"spec.output.uri": "gs://b/v1..2"},
    "long prompts": {"spec.samples": {"prompts": ["x" * 4096] * 8}},
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
    "model: claim of no object": (
        {"spec.model": {"uri": "pvc://My_Claim/m"}},
        "spec.model.uri",
        "names a claim that cannot exist",
        "PersistentVolumeClaim's name",
    ),
    "dataset: path out of its volume": (
        {"spec.dataset.uri": "pvc://data/../m.jsonl"},
        "spec.dataset.uri",
        "has a .. in its path",
        "without it",
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
        {"spec.model": {"uri": "kaggle://google/gemma/transformers/x", "secretRef": {"name": "s", "key": "k"}}},
        "spec.model.secretRef.key",
        "reads two keys, KAGGLE_USERNAME and KAGGLE_KEY",
        "Remove it",
    ),
    "model: Keras's files of Kaggle": (
        {"spec.model": {"uri": "kaggle://google/gemma-2/keras/gemma2_2b_en"}},
        "spec.model.uri",
        "read as safetensors, which Kaggle has under FRAMEWORK transformers",
        "kaggle://google/gemma-2/transformers/VARIATION",
    ),
    "model: Kaggle without variation": (
        {"spec.model": {"uri": "kaggle://google/gemma-2/transformers"}},
        "spec.model.uri",
        "is no kaggle:// URI",
        "kaggle://OWNER/MODEL/FRAMEWORK/VARIATION",
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
    "output: a glob": ({"spec.output.uri": "gs://b/*"}, "spec.output.uri", "has a space", "Remove it"),
    "output: a space": ({"spec.output.uri": "gs://b/a b"}, "spec.output.uri", "has a space", "Remove it"),
    "output: upwards": (
        {"spec.output.uri": "file:///a/../b"},
        "spec.output.uri",
        "has a .. in its path",
        "Write the path",
    ),
    "size: long prompts": (
        {"spec.samples": {"prompts": ["😀" * 4000] * 4}},
        "spec",
        "more than 57344 bytes of text together",
        "Shorten",
    ),
    "size: dollars": ({"spec.samples": {"prompts": ["$" * 4000] * 3}}, "spec", "more than 57344 bytes", "Shorten"),
}
