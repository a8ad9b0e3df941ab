"""Termination messages: always small enough, always readable."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api.messages import PreparedModel, PrepareResult, TerminationMessage, from_text, to_text
from gemmatune_api.names import TERMINATION_MESSAGE_BYTES
from gemmatune_api.status import DataStatus

long_texts = st.text(alphabet=st.characters(), max_size=100).map(lambda text: text * 150)
values: st.SearchStrategy[Any] = st.none() | st.integers() | long_texts | st.lists(st.integers(), max_size=9)


@given(
    st.builds(
        TerminationMessage, reason=st.text(max_size=20), message=long_texts, remedy=long_texts, manifest=long_texts
    )
)
def test_any_message_is_small_and_readable(message: TerminationMessage) -> None:
    text = to_text(message)

    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    read = from_text(text, TerminationMessage)
    assert read is not None
    assert read.reason.encode("utf-8", "replace") == message.reason.encode("utf-8", "replace")


@given(long_texts, st.dictionaries(st.text(alphabet=st.characters(codec="utf-8"), max_size=50), values, max_size=30))
def test_any_result_of_a_preparation_is_small_and_keeps_its_data(words: str, shape: dict[str, Any]) -> None:
    data = DataStatus(hash="h" * 64, rows=10**9, tokens=10**12, labelled_tokens=10**12, longest=10**6)
    result = PrepareResult(
        reason="Completed", message=words, model=PreparedModel(family="gemma2", shape=shape), data=data
    )

    text = to_text(result)

    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    read = from_text(text, PrepareResult)
    assert read is not None
    assert read.data == data


def test_a_short_message_is_whole() -> None:
    message = TerminationMessage(
        reason="DataInvalid", message='Row 7: "quote" fehlt — schade\n', remedy="Fix it.", step=3
    )

    text = to_text(message)

    assert json.loads(text) == {
        "reason": "DataInvalid",
        "message": 'Row 7: "quote" fehlt — schade\n',
        "remedy": "Fix it.",
        "step": 3,
    }
    assert from_text(text, TerminationMessage) == message


def test_the_beginning_of_a_long_text_stays() -> None:
    read = from_text(to_text(TerminationMessage(message="first " + "é" * 9000, remedy="Do that.")), TerminationMessage)

    assert read is not None
    assert read.message.startswith("first é")
    assert len(read.message.encode()) > TERMINATION_MESSAGE_BYTES // 2
    assert read.remedy == "Do that."


@pytest.mark.parametrize(
    "text",
    [None, "", "no JSON", "[]", "5", '{"step": "x"}', '{"reason"', "null", '{"step": NaN}', "[" * 4096, '{"a":' * 4096],
)
def test_what_cannot_be_read_is_nothing(text: str | None) -> None:
    assert from_text(text, TerminationMessage) is None


def test_fields_of_a_newer_trainer_are_passed_over() -> None:
    read = from_text('{"reason": "Crashed", "later": 1}\n', TerminationMessage)

    assert read is not None
    assert read.reason == "Crashed"


@given(st.text())
def test_reading_never_raises(text: str) -> None:
    from_text(text, PrepareResult)


def test_a_shape_keeps_numbers_alone() -> None:
    """What a trainer, or the model that it has read, nests hundreds deep comes into no status."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    shape = {"model_type": "gemma2", "use_double_wide_mlp": deep, "text_config": {"head_dim": 8, "x": {"y": deep}}}
    text = json.dumps({"model": {"family": "gemma2", "shape": shape}})
    read = from_text(text, PrepareResult)
    assert read is not None
    assert read.model is not None
    assert read.model.shape == {"model_type": "gemma2", "text_config": {"head_dim": 8}}
