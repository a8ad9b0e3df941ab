"""The text of an apply: what YAML reads in it is what was meant, whatever characters there are."""

from __future__ import annotations

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api.apply import apply_text

ODD = "".join(map(chr, [0, 9, 10, 13, 27, 34, 92, 0x7F, 0x80, 0x85, 0x9F, 0xA0, 0xE9, 0x2028, 0x2029, 0xFEFF, 0xFFFE]))


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(ODD)))
def test_json_and_yaml_read_the_same(text: str) -> None:
    body = {"status": {"message": text, text: [text, 1.5, None, True]}}
    written = apply_text(body)
    assert json.loads(written) == body
    assert yaml.safe_load(written) == body


def test_an_emoji_stays_whole() -> None:
    """The API server refuses one that is written as two halves."""
    assert "\N{GRINNING FACE}".encode() in apply_text({"message": "\N{GRINNING FACE}"})


def test_half_a_character_costs_no_status() -> None:
    """Python's names of files that are no UTF-8 hold such halves."""
    assert json.loads(apply_text({"message": "file \udcff.jsonl"})) == {"message": "file ?.jsonl"}
