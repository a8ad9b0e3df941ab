"""YAML as kubectl reads it; tests/cluster/test_crd_yaml.py shows that the table is true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import validate, yamlio
from gemmatune_api.errors import InvalidResourceError
from tests.support.resources import resource
from tests.support.yaml_cases import DOCUMENTS, NOT_FINITE, REFUSED, SCALARS


def refusal(text: str) -> str:
    with pytest.raises(yamlio.YamlError) as error:
        yamlio.load_all(text)
    return str(error.value)


@pytest.mark.parametrize("text", SCALARS)
def test_scalars(text: str) -> None:
    (document,) = yamlio.load_all(f"a: {text}\n")
    value = document["a"]  # type: ignore[index]

    assert value == SCALARS[text]
    assert type(value) is type(SCALARS[text])


@pytest.mark.parametrize("text", NOT_FINITE)
def test_numbers_that_json_lacks_are_refused(text: str) -> None:
    assert refusal(f"x: 1\na: {text}\n").startswith(f"line 2, column 4: {text} is no number of JSON.")


@pytest.mark.parametrize("case", DOCUMENTS)
def test_documents(case: str) -> None:
    text, value = DOCUMENTS[case]

    assert yamlio.load_all(text) == [value]


# PyYAML turns half a surrogate into a character that pydantic refuses.
@pytest.mark.parametrize("case", [case for case in REFUSED if case != "half a surrogate"])
def test_what_is_no_yaml_is_refused_with_its_line(case: str) -> None:
    assert refusal(f"first: 1\n---\n{REFUSED[case]}").startswith("line ")


def test_half_a_surrogate_is_refused_by_the_models() -> None:
    (document,) = yamlio.load_all(json.dumps(resource(changes={"spec.model.revision": "\ud83d"})))

    with pytest.raises(InvalidResourceError, match=r"spec\.model\.revision: must be valid Unicode"):
        validate.parse(document)
    (document,) = yamlio.load_all(json.dumps(resource(changes={"spec.lora": {"targetModules": ["\ud83d"]}})))
    with pytest.raises(InvalidResourceError, match=r"spec\.lora\.targetModules\[0\]: must be valid Unicode"):
        validate.parse(document)
    with pytest.raises(InvalidResourceError, match=r"spec\.lora\.targetModules\[0\]: must be valid Unicode"):
        validate.parse_spec(document["spec"])
    (document,) = yamlio.load_all(json.dumps(resource(changes={"spec.pod": {"labels": {"a\ud83d": "b"}}})))
    with pytest.raises(InvalidResourceError, match=r"spec\.pod\.labels: a name must be valid Unicode") as raised:
        validate.parse(document)
    str(raised.value).encode()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1"),
        ("# c\n---\nx: 1\n---\na:\n  b: 1\n  b: 2\n", "line 7, column 3"),
        ("{a: 1, 'a': 2}\n", "line 1, column 8"),
        ('{"a": 1,\n "a": 2}\n', "line 2, column 2"),
        ("{1: a, '1': b}\n", "line 1, column 8"),
    ],
)
def test_a_key_that_appears_twice_is_refused(text: str, line: str) -> None:
    said = refusal(text)

    assert said.startswith(f"{line}: the key ")
    assert said.endswith("appears twice in one block. Remove one of them.")


def test_several_documents() -> None:
    assert yamlio.load_all("# a\n---\na: 1\n--- # b\n---\nnull\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
    assert yamlio.load_all("") == []
    assert yamlio.load_all("\ufeffa: 1\r\n---\r\nb: 2\r\n") == [{"a": 1}, {"b": 2}]


def test_a_document_on_the_line_of_its_dashes_is_refused() -> None:
    assert refusal("a: 1\n--- {b: 2}\n").startswith("line 2: something follows the ---")


def test_what_kubectl_would_silently_leave_out_is_refused() -> None:
    """After `...` kubectl reads nothing more."""
    assert refusal("a: 1\n...\nb: 2\n").startswith("line 3")


def test_json() -> None:
    assert yamlio.load_all(' {"a": 1.0, "b": ["yes", "010"]}\n{"c": null}') == [
        {"a": 1.0, "b": ["yes", "010"]},
        {"c": None},
    ]
    assert yamlio.load_all('{\n\t"a": 1\n}') == [{"a": 1}]


@pytest.mark.parametrize("kind", ["List", "GemmaFineTuneList"])
def test_a_list_is_its_items(kind: str) -> None:
    text = json.dumps({"apiVersion": "v1", "kind": kind, "items": [resource("a"), resource("b")]})

    assert yamlio.load_all(text) == [resource("a"), resource("b")]


@pytest.mark.parametrize("tag", ["!!binary aGk=", "!!set {a}", "!foo bar", "!!python/object:os.system x", "!!int x"])
def test_other_tags_are_refused(tag: str) -> None:
    assert "tag" in refusal(f"a: {tag}\n")


def test_depth_does_not_exhaust_the_stack() -> None:
    assert "nested too deep" in refusal("[" * 20_000)
    assert "nested too deep" in refusal('{"a":' * 20_000)


def test_many_values_are_read_and_too_many_refused() -> None:
    assert len(yamlio.load_all(json.dumps({"a": list(range(1000))}))) == 1
    assert "more than 100000 values" in refusal("a: &a [" + "1, " * 400 + "]\nb: [" + "*a, " * 400 + "]\n")


plain_json: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(-1e9, 1e9)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), plain_json))
def test_json_comes_back_as_it_was(document: dict[str, Any]) -> None:
    assert yamlio.load_all(json.dumps(document)) == [document]


@given(st.text())
def test_reading_any_text_gives_values_or_a_refusal(text: str) -> None:
    try:
        documents = yamlio.load_all(text)
    except yamlio.YamlError as error:
        documents = [str(error)]
    json.dumps(documents, allow_nan=False)


@given(st.text(alphabet="0123456789+-._eExXoObBinfaINF:TZ ", max_size=12))
def test_any_plain_scalar_has_a_json_value(text: str) -> None:
    json.dumps(yamlio.plain(text), allow_nan=False)
