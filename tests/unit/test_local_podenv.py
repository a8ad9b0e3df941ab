"""The test node resolves commands and environments as the kubelet does."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from gemmatune_cli.local.podenv import ConfigError, environment, expand, relocate

POD = {
    "metadata": {"name": "run-t1-abcde", "namespace": "team", "labels": {"gemmatune.dev/role": "train"}},
    "spec": {"nodeName": "node-1"},
    "status": {},
}
SECRET = {"data": {"token": base64.b64encode(b"hf_x").decode()}}


def lookup(kind: str, name: str) -> dict[str, object] | None:
    return {("secrets", "hub"): SECRET, ("configmaps", "settings"): {"data": {"A": "1"}}}.get((kind, name))


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A) and $(B)", "1 and $(B)"),
        ("$$(A)", "$(A)"),
        ("cost: $5", "cost: $5"),
        ("$$", "$"),
        ("$(A", "$(A"),
        (r"\u0024(A)", r"\u0024(A)"),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


def test_sources_and_their_order() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "hub"}, "prefix": "HUB_"}],
        "env": [
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "ROLE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['gemmatune.dev/role']"}}},
            {"name": "BOTH", "value": "$(A)-$(NODE)-$(LATER)"},
            {"name": "LATER", "value": "x"},
            {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": True}}},
        ],
    }

    found = environment(POD, container, lookup, {"A": "0", "PATH": "/bin"})

    assert found == {
        "PATH": "/bin",
        "A": "1",
        "HUB_token": "hf_x",
        "NODE": "node-1",
        "ROLE": "train",
        "BOTH": "1-node-1-$(LATER)",
        "LATER": "x",
    }


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"secretKeyRef": {"name": "none", "key": "token"}}, 'secret "none" not found'),
        ({"secretKeyRef": {"name": "hub", "key": "tokn"}}, "couldn't find key tokn in secrets hub"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "resourceFieldRef"),
    ],
)
def test_what_cannot_be_resolved_is_named(source: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        environment(POD, {"env": [{"name": "X", "valueFrom": source}]}, lookup, {})


def test_paths_in_volumes_move_and_others_stay() -> None:
    variables = {"HF_HOME": "/cache/hf", "CACHE": "/cache", "OTHER": "/cached", "TEXT": "see /cache"}

    assert relocate(variables, {"/cache": Path("/private/1")}) == {
        "HF_HOME": "/private/1/hf",
        "CACHE": "/private/1",
        "OTHER": "/cached",
        "TEXT": "see /cache",
    }
