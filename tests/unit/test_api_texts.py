"""Texts with a grammar of their own: quantities of Kubernetes and templates of rows."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import quantity, template


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (4, "4"),
        ("4", "4"),
        ("500m", "0.5"),
        ("1.5", "1.5"),
        (".5Gi", str(2**29)),
        ("16Gi", str(16 * 2**30)),
        ("1Ki", "1024"),
        ("1k", "1000"),
        ("2E", "2e18"),
        ("2e3", "2000"),
        ("2E3", "2000"),
        ("1Ei", str(2**60)),
        ("100n", "1e-7"),
        ("0", "0"),
    ],
)
def test_quantities(text: str | int, number: str) -> None:
    assert quantity.parse(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "Gi", "16GB", "16gi", "1K", "-1", "1 Gi", "1,5", "0x10", "1e", "1Gi\n", "٣"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity.parse(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Quote: {quote}\nAuthor: {author}", [("Quote: ", "quote"), ("\nAuthor: ", "author"), ("", None)]),
        ("plain", [("plain", None)]),
        ("", [("", None)]),
        ("{a}{b}", [("", "a"), ("", "b"), ("", None)]),
        ('{{"q": "{a b}"}}', [('{"q": "', "a b"), ('"}', None)]),
        ("{{{a}}}", [("{", "a"), ("}", None)]),
    ],
)
def test_templates(text: str, parts: list[tuple[str, str | None]]) -> None:
    assert template.parse(text) == parts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a { b", "the brace at character 3 names no column: '{ b'"),
        ("{}", "the brace at character 1 names no column"),
        ("{ }", "the brace at character 1 names no column"),
        ("a}b", "the brace at character 2 closes nothing"),
        ("{a{b}", "the brace at character 1 names no column"),
        ("{a}}", "the brace at character 4 closes nothing"),
    ],
)
def test_a_stray_brace_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(template.TemplateError) as error:
        template.parse(text)
    assert words in str(error.value)


def test_columns_come_once_each() -> None:
    assert template.columns("{b} {a} {b} {{c}}") == ("b", "a")


@given(st.text())
def test_a_text_with_doubled_braces_is_itself(text: str) -> None:
    assert template.parse(text.replace("{", "{{").replace("}", "}}")) == [(text, None)]
