"""Resources with something wrong or odd in them: sound ones in which a few places hold any JSON at all."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from tests.support.resources import resource

NASTY = (
    "",
    "../../etc/passwd",
    "$(HF_TOKEN)",
    "$$(HF_TOKEN)",
    "${HF_TOKEN}",
    "{{ 7 * 7 }}",
    "{0.__class__}",
    "<script>alert(1)</script>",
    "http://169.254.169.254/computeMetadata/v1/",
    "gs://",
    "gs://bucket/../other",
    "hf://../../x",
    "file:///etc/passwd",
    "pvc://claim/../../x",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "a" * 5000,
    "-1",
    "1e400",
    "90s",
)
BASES = (
    resource(),
    resource(
        changes={
            "spec.full": {},
            "spec.accelerator": {"gpu": {"type": "nvidia-h100-80gb"}},
            "spec.training": {"maxSteps": 10, "learningRate": 1e-5, "optimizer": "adamw_torch"},
            "spec.limits": {"maxRetries": 2, "deadline": "2h", "maxCost": 5},
            "spec.pod": {
                "image": "registry.example/trainer:1",
                "serviceAccountName": "team",
                "labels": {"team": "a"},
                "tolerations": [{"key": "x", "operator": "Exists"}],
                "env": [{"name": "NAME", "value": "value"}],
            },
            "spec.provisioning": {"mode": "spot", "fallback": {"mode": "onDemand", "afterPreemptions": 2}},
        }
    ),
    resource(
        changes={
            "spec.dataset": {
                "uri": "gs://bucket/rows/*.jsonl",
                "chat": {"messages": "messages", "systemText": "Be brief.", "train": "last"},
                "maxLength": 512,
                "evalFraction": 0.1,
            },
            "spec.lora": {"rank": 4, "targetModules": ["q_proj"], "dora": True},
            "spec.checkpoint": {"everySteps": 5, "keep": 1, "best": True},
            "spec.samples": {"prompts": ["Hello"], "maxNewTokens": 8},
            "spec.tracking": {"wandb": {"project": "p", "secretRef": {"name": "wandb"}}},
        }
    ),
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NASTY) | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of a value and of all that is in it."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


@st.composite
def resources(draw: st.DrawFn, values: st.SearchStrategy[Any] = anything) -> dict[str, Any]:
    """A resource of BASES in which up to three values of the spec are replaced, or a field is added."""
    document: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(document["spec"])[1:]))
        block: Any = document["spec"]
        for part in way:
            block = block[part]
        if draw(st.booleans()) or not isinstance(block, dict):
            block[last] = draw(values)
        else:
            block[draw(st.sampled_from(["uri", "env", "prompts", "hostPath", "limit", "name"]))] = draw(values)
    return document
