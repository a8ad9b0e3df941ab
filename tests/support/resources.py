"""Resources for tests: a small valid one, and copies with fields set or taken away."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from gemmatune_api import checks
from gemmatune_api.defaults import resolve
from gemmatune_api.errors import Problem
from gemmatune_api.spec import FineTuneSpec

Object = dict[str, Any]

MISSING = object()
"""As a value: take the field away."""


def resource(name: str = "quotes", changes: dict[str, Any] | None = None) -> Object:
    """The smallest useful resource on a GPU, with `changes` by field path (`spec.training.epochs`)."""
    document: Object = {
        "apiVersion": "gemmatune.dev/v1alpha1",
        "kind": "GemmaFineTune",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://google/gemma-2-2b", "secretRef": {"name": "hf-token"}},
            "dataset": {
                "uri": "hf://Abirate/english_quotes",
                "text": {"template": "Quote: {quote}\nAuthor: {author}"},
            },
            "output": {"uri": "gs://my-bucket/quotes"},
            "accelerator": {"gpu": {"type": "nvidia-l4"}},
        },
    }
    return changed(document, changes or {})


def changed(document: Object, changes: dict[str, Any]) -> Object:
    """A copy with the fields at these paths set, blocks on the way made, MISSING ones taken away."""
    copy = deepcopy(document)
    for path, value in changes.items():
        *blocks, last = path.split(".")
        block = copy
        for part in blocks:
            block = block.setdefault(part, {})
        if value is MISSING:
            block.pop(last, None)
        else:
            block[last] = deepcopy(value)
    return copy


def problems_between_fields(changes: dict[str, Any], *, resolved: bool = False) -> list[Problem]:
    """What the cross-field rules find in the small resource with `changes`, or in its resolved spec."""
    spec = FineTuneSpec.model_validate(resource(changes=changes)["spec"], strict=True)
    return checks.problems(resolve(spec) if resolved else spec)
