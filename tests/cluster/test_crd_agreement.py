"""What `validate` accepts the API server accepts: every field of spec, set to values of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gemmatune_api import validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.location import arms, is_model
from gemmatune_api.names import PLURAL, Reason
from gemmatune_api.spec import FineTuneSpec
from tests.support.api import ApiError
from tests.support.controlplane import ControlPlane
from tests.support.resources import Object, changed, resource

pytestmark = pytest.mark.cluster

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    0.5,
    2**40,
    "",
    "a",
    "A b",
    "é" * 300,
    "5m",
    "5m\n",
    "gs://b/p",
    "hf://a/b",
    [],
    ["a"],
    [None],
    [{}],
    {},
    {"a": "b"},
    {"a": None},
)
"""2.0 is missing: kubectl sends it as 2, and from others a rule that looks at the field cannot read it."""


def fields(model: Any, path: str) -> Iterator[str]:
    """Paths of all fields, blocks and those inside the entries of lists left out."""
    for name, field in model.model_fields.items():
        below = f"{path}.{field.alias or name}"
        yield below
        for arm in arms(field.annotation):
            if is_model(arm):
                yield from fields(arm, below)


def sound(document: Object) -> bool:
    """Whether validate finds no fault; what is only not built yet is sound."""
    try:
        validate.parse(document)
    except InvalidResourceError as refusal:
        return all(problem.reason is Reason.NOT_SUPPORTED_YET for problem in refusal.problems)
    return True


@pytest.fixture(scope="module")
def accepts(crd: ControlPlane, make_namespace: Callable[..., str]) -> Callable[[Object], str]:
    """Asks the API server: empty for yes, else its words."""
    collection = f"/apis/gemmatune.dev/v1alpha1/namespaces/{make_namespace()}/{PLURAL}"
    api = crd.api

    def ask(document: Object) -> str:
        try:
            api.call("POST", collection, document, dryRun="All", fieldValidation="Strict")
        except ApiError as error:
            return str(error)
        return ""

    return ask


@pytest.mark.parametrize("block", FineTuneSpec.model_fields)
def test_what_validate_accepts_the_api_server_accepts(block: str, accepts: Callable[[Object], str]) -> None:
    field = FineTuneSpec.model_fields[block]
    paths = [path for path in fields(FineTuneSpec, "spec") if path.split(".")[1] == (field.alias or block)]
    disagreements = []
    for path in paths:
        for value in VALUES:
            document = changed(resource(), {path: value})
            if sound(document) and (words := accepts(document)):
                disagreements.append(f"{path} = {value!r}: {words}")

    assert disagreements == []


def test_what_the_schema_alone_refuses_validate_refuses(accepts: Callable[[Object], str]) -> None:
    """The other way round, for types: validate is never laxer about the kind of a value."""
    lax = []
    for path in fields(FineTuneSpec, "spec"):
        for value in (True, 1, 0.5, "a", [1], {"a": 1}):
            document = changed(resource(), {path: value})
            if "must be of type" in accepts(document) and sound(document):
                lax.append(f"{path} = {value!r}")

    assert lax == []
