"""No field of a spec nests without end: a resource of 2,000 brackets ended the operator, for everybody's runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.resources import resource

pytestmark = pytest.mark.cluster
DEEP = "deep"
FIELDS: dict[str, tuple[str, Any]] = {
    "target modules": ("spec.lora", {"targetModules": [DEEP]}),
    "of QLoRA": ("spec.qlora", {"targetModules": ["q_proj", {"a": DEEP}]}),
    "a prompt": ("spec.samples", {"prompts": [[DEEP]]}),
    "a prompt's image": ("spec.samples", {"prompts": [{"text": "A", "image": DEEP}]}),
    "instead of an image": ("spec.samples", {"prompts": [{"text": "A", "other": DEEP}]}),
    "besides an image": ("spec.samples", {"prompts": [{"text": "A", "image": "gs://b/x.png", "other": DEEP}]}),
}


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_nests_without_end(crd: ControlPlane, namespace: str, name: str) -> None:
    """Twice as well as 2,000 times: what is refused is the place, not the depth."""
    field, value = FIELDS[name]
    text = json.dumps(resource(changes={field: value}))
    for depth in (2, 2000):
        document = text.replace(f'"{DEEP}"', "[" * depth + '"q_proj"' + "]" * depth)
        command = ("create", "-n", namespace, "--dry-run=server", "--validate=false", "-f", "-")
        done = crd.kubectl(*command, input=document, check=False)
        assert done.returncode, done.stdout
        assert field in done.stderr
