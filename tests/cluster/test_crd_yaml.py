"""`gft validate` and the API server accept and refuse the same files, and read the same values from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

from gemmatune_api import validate, yamlio
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.names import Reason
from tests.support.controlplane import ControlPlane
from tests.support.yaml_cases import DOCUMENTS, HEAD, NOT_FINITE, REFUSED, SCALARS

pytestmark = pytest.mark.cluster

Kubectl = Callable[..., CompletedProcess[str]]

ANYTHING = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "anythings.tests.gemmatune.dev"},
    "spec": {
        "group": "tests.gemmatune.dev",
        "scope": "Namespaced",
        "names": {"kind": "Anything", "plural": "anythings", "singular": "anything"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}
"""A resource that takes anything, to see what kubectl reads."""

SPEC = """\
spec:
  model: {{uri: "{uri}"}}
  dataset: {{uri: "gs://b/d.jsonl", text: {{template: "{{a}}"}}, packing: {packing}}}
  output: {{uri: "gs://b/o"}}
  accelerator: {{cpu: {{}}}}
  training: {{learningRate: {rate}, maxSteps: {steps}}}
  pod: {{annotations: {{version: {note}}}}}
"""
SOUND = {"uri": "hf://google/gemma-2-2b", "packing": "yes", "rate": "2e-4", "steps": "010", "note": "'1'"}
FIELDS: dict[str, tuple[str, ...]] = {
    "packing": ("yes", "no", "on", "True", "y", "1", "'yes'", "~", "tRue", "[]"),
    "rate": ("2e-4", "1", "0", "'2e-4'", "1.0", "1e1", ".5", "2e-4x", ".nan"),
    "steps": ("010", "0x1F", "1_0", "1e3", "2.0", "2.5", "'8'", "true", "08", "0", "1:30", "99999999999999999999"),
    "note": ("'1'", "v1", "1", "yes", "~", "2026-01-02", "1.5", "1:30", "0o9", "''"),
    "uri": ("gs://b/m", "s3://b/m", "file:///m", "hf://a/b"),
}
"""Values of a field; each is tried in the file that is otherwise sound."""
FILES = [(field, value) for field, values in FIELDS.items() for value in values]


@pytest.fixture(scope="module")
def space(make_namespace: Callable[..., str]) -> str:
    """One namespace for all of these: nothing is stored in it."""
    return make_namespace()


@pytest.fixture(scope="module")
def read(crd: ControlPlane, space: str) -> Iterator[Callable[[str], Any]]:
    """What kubectl reads as `spec` from a YAML text; None where it refuses to."""
    crd.kubectl("apply", "-f", "-", input=ANYTHING)
    crd.kubectl("wait", "--for=create", "--timeout=30s", "crd/anythings.tests.gemmatune.dev")
    crd.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/anythings.tests.gemmatune.dev")

    def spec(block: str) -> Any:
        head = "apiVersion: tests.gemmatune.dev/v1\nkind: Anything\nmetadata: {name: a}\nspec:\n"
        text = head + "".join(f"  {line}\n" for line in block.splitlines())
        answer = crd.kubectl(
            "create", "-n", space, "--dry-run=server", "-o", "json", "-f", "-", input=text, check=False
        )
        return json.loads(answer.stdout)["spec"] if answer.returncode == 0 else None

    yield spec
    crd.kubectl("delete", "crd", "anythings.tests.gemmatune.dev")


def test_scalars_are_what_kubectl_reads(read: Callable[[str], Any]) -> None:
    block = "list:\n" + "".join(f"- {text}\n" for text in SCALARS)

    assert read(block)["list"] == list(SCALARS.values())


@pytest.mark.parametrize("text", NOT_FINITE)
def test_numbers_that_json_lacks_are_refused(text: str, read: Callable[[str], Any]) -> None:
    assert read(f"a: {text}") is None


@pytest.mark.parametrize("case", DOCUMENTS)
def test_documents_are_what_kubectl_reads(case: str, read: Callable[[str], Any]) -> None:
    text, value = DOCUMENTS[case]

    assert read(text) == value


@pytest.mark.parametrize("case", REFUSED)
def test_kubectl_refuses_what_yamlio_refuses(case: str, read: Callable[[str], Any]) -> None:
    assert read(REFUSED[case]) is None


def test_only_kubectl_takes_a_key_twice(read: Callable[[str], Any]) -> None:
    """The one difference that is meant: it keeps the last value and says nothing."""
    assert read("a: 1\na: 2") == {"a": 2}


@pytest.mark.parametrize(("field", "value"), FILES)
def test_validate_and_the_api_server_agree(field: str, value: str, crd: ControlPlane, space: str) -> None:
    text = HEAD + SPEC.format(**{**SOUND, field: value})

    answer = crd.kubectl("create", "-n", space, "--dry-run=server", "-f", "-", input=text, check=False)

    assert (answer.returncode == 0) == valid(text), answer.stderr


def valid(text: str) -> bool:
    """Whether `gft validate` finds the text sound; what is only not built yet is sound."""
    try:
        for document in yamlio.load_all(text):
            validate.parse(document)
    except InvalidResourceError as refusal:
        return all(problem.reason is Reason.NOT_SUPPORTED_YET for problem in refusal.problems)
    return True
