"""JSON lists read in pieces: what json.loads says of the whole text, in memory that does not grow with it."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_trainer.data import jsonlist

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def read(text: str | bytes, piece: int) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlist, "_PIECE_BYTES", piece)
        return list(jsonlist.items(io.BytesIO(text.encode() if isinstance(text, str) else text)))


@given(st.lists(VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_pieces_of_any_size_give_the_same_items(values, piece, indent, ascii_only):
    assert read(json.dumps(values, indent=indent, ensure_ascii=ascii_only), piece) == values


@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_a_damaged_list_is_refused_where_json_refuses_it(values, data):
    text = json.dumps(values, indent=data.draw(st.sampled_from([None, 1])))
    place = data.draw(st.integers(1, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from(["", "}", "x", '"', ",,", "\n"])) + text[place + 1 :]
    refused = refusal(damaged)
    for piece in (1, 7, 1 << 20):
        if refused is None:
            assert read(damaged, piece) == json.loads(damaged)
        else:
            # Newer versions of Python name the comma itself where one is too many.
            place_told = (
                "" if "trailing comma" in refused.msg else f"in line {refused.lineno}, character {refused.colno}$"
            )
            with pytest.raises(jsonlist.NotAList, match=place_told):
                read(damaged, piece)


def refusal(text: str) -> json.JSONDecodeError | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    return None


def test_a_wrong_byte_is_counted_from_the_beginning():
    with pytest.raises(UnicodeDecodeError) as caught:
        read(b'["' + "\u263a".encode() * 20 + b'", "\xff"]', 5)
    assert caught.value.start == 2 + 60 + 4


def test_memory_does_not_grow_with_the_list():
    row = json.dumps({"text": "x" * 500})
    whole = io.BytesIO(("[" + ",\n".join([row] * 40_000) + "]").encode())
    tracemalloc.start()
    assert sum(1 for _ in jsonlist.items(whole)) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 < len(whole.getbuffer())
