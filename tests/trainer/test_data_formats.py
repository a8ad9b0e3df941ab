"""Formats: rows to documents, and what a wrong row is told."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api.runconfig import RunDataset
from gemmatune_api.spec import ChatFormat, InstructFormat, TextFormat
from gemmatune_trainer.data.formats import Conversation, Text, Turn, documents, formatter
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import DataInvalid, InvalidConfig


def dataset(**values: Any) -> RunDataset:
    base = {"uri": "file:///data.jsonl", "split": "train", "max_length": 64, "too_long": "truncate", "packing": True}
    return RunDataset(**{**base, **values})


TEXT = dataset(text=TextFormat(template="Quote: {quote}\nAuthor: {author}"))
INSTRUCT = dataset(instruct=InstructFormat())
CHAT = dataset(chat=ChatFormat())


def make(block: RunDataset, **values: Any) -> Text | Conversation:
    return formatter(block)(Row(values, "data.jsonl line 7"))


def refusal(block: RunDataset, **values: Any) -> str:
    with pytest.raises(DataInvalid) as caught:
        make(block, **values)
    assert caught.value.remedy
    return caught.value.message


def test_text_fills_the_template():
    assert make(TEXT, quote="Be {yourself}.", author="Oscar Wilde") == Text(
        "Quote: Be {yourself}.\nAuthor: Oscar Wilde"
    )
    braces = dataset(text=TextFormat(template='{{"n": {a number}}}'))
    assert make(braces, **{"a number": 7}) == Text('{"n": 7}')


def test_templates_that_cannot_be_read_are_refused():
    with pytest.raises(InvalidConfig, match="names no column") as caught:
        formatter(dataset(text=TextFormat(template="a {}")))
    assert "{{" in caught.value.remedy


def test_text_refusals_name_row_column_and_what_was_found():
    assert refusal(TEXT, quote="x", writer="y") == (
        "data.jsonl line 7: there is no column 'author'; the columns are 'quote', 'writer'"
    )
    assert refusal(TEXT, quote="x", author=None) == (
        "data.jsonl line 7, column 'author': expected a text or a number, found nothing (null)"
    )
    assert "found list ['y']" in refusal(TEXT, quote="x", author=["y"])
    assert "empty text" in refusal(dataset(text=TextFormat(template="{quote}")), quote=" \n")


def test_instruct_joins_instruction_and_input():
    answer = Turn("assistant", "Blue.", trained=True)
    plain = Conversation("", (Turn("user", "What colour?"), answer))
    assert make(INSTRUCT, instruction=" What colour? ", output="Blue.\n") == plain
    assert make(INSTRUCT, instruction="What colour?", input=None, output="Blue.") == plain
    assert make(INSTRUCT, instruction="What colour?", input=" ", output="Blue.") == plain
    joined = Conversation("", (Turn("user", "What colour?\nThe sky."), answer))
    assert make(INSTRUCT, instruction="What colour?", input="The sky.", output="Blue.") == joined


def test_instruct_takes_other_columns_and_a_system_text():
    block = dataset(instruct=InstructFormat(instruction="q", input="context", output="a", system_text="Be brief."))
    expected = Conversation("Be brief.", (Turn("user", "Why?\nRain."), Turn("assistant", "So.", trained=True)))
    assert make(block, q="Why?", context="Rain.", a="So.") == expected
    assert "no column 'context'" in refusal(block, q="Why?", a="So.")


def test_instruct_refusals():
    assert "column 'output': expected an answer, found text ''" in refusal(INSTRUCT, instruction="a", output="")
    assert "column 'output': expected an answer, found nothing" in refusal(INSTRUCT, instruction="a", output=None)
    assert "column 'instruction': expected a text, found number 3" in refusal(INSTRUCT, instruction=3, output="b")
    assert "column 'input': expected a text, found list [1]" in refusal(
        INSTRUCT, instruction="a", input=[1], output="b"
    )


def messages(*pairs: tuple[Any, Any], keys: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


FOUR = (("user", "One?"), ("assistant", " 1 "), ("user", "Two?"), ("assistant", "2"))


def test_chat_trains_every_answer_or_the_last():
    turns = (Turn("user", "One?"), Turn("assistant", "1", True), Turn("user", "Two?"), Turn("assistant", "2", True))
    assert make(CHAT, messages=messages(*FOUR)) == Conversation("", turns)
    last = make(dataset(chat=ChatFormat(train="last")), messages=messages(*FOUR))
    assert isinstance(last, Conversation)
    assert [turn.trained for turn in last.turns] == [False, False, False, True]


def test_chat_reads_the_form_of_from_and_value_and_all_names_of_roles():
    shared = messages(("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello"), keys=("from", "value"))
    expected = Conversation("Be kind.", (Turn("user", "Hi"), Turn("assistant", "Hello", trained=True)))
    assert make(CHAT, conversations=shared) == expected
    assert make(CHAT, messages=messages(("system", "Be kind."), ("user", "Hi"), ("model", "Hello"))) == expected


def test_the_system_text_of_the_spec_is_for_conversations_without_one():
    block = dataset(chat=ChatFormat(messages="talk", system_text="Default."))
    pair = (("user", "Hi"), ("assistant", "Hello"))
    assert make(block, talk=messages(*pair)).system == "Default."
    assert make(block, talk=messages(("system", "Own."), *pair)).system == "Own."


def test_the_system_text_of_a_row_may_be_a_column_of_its_own():
    block = dataset(chat=ChatFormat(system_text="Default."))
    pair = messages(("human", "Hi"), ("gpt", "Hello"), keys=("from", "value"))
    assert make(block, conversations=pair, system="Row.").system == "Row."
    assert make(block, conversations=pair, system=" ").system == "Default."
    assert make(block, conversations=pair, system=None).system == "Default."
    own = messages(("system", "Message."), ("human", "Hi"), ("gpt", "Hello"), keys=("from", "value"))
    assert make(block, conversations=own, system="Row.").system == "Message."
    assert "column 'system': expected a text, found number 3" in refusal(block, conversations=pair, system=3)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("Hi", "expected a list of messages, found text 'Hi'"),
        ([], "expected a list of messages, found list []"),
        (["Hi"], "message 1 with role and content (or from and value), found text 'Hi'"),
        (messages(("user", "Hi"), ("tool", "x")), "message 2 to have a role out of user, human"),
        (messages(("user", None), ("assistant", "x")), "message 1 to have a text as its content, found nothing"),
        (messages(("user", "Hi"), ("assistant", " ")), "message 2 to have a text, found text ' '"),
        (messages(("user", "Hi")), "must end with an assistant's message, found user as the last role"),
        (messages(("system", "Hi")), "must end with an assistant's message, found no message but the system text"),
        (messages(("user", "a"), ("user", "b"), ("assistant", "c")), "found two user messages in a row"),
        (messages(("assistant", "a"), ("user", "b"), ("assistant", "c")), "found assistant as the first role"),
        (messages(("user", "a"), ("system", "b"), ("assistant", "c")), "a system message that is not the first"),
    ],
)
def test_chat_refusals(found, message):
    text = refusal(CHAT, messages=found)
    assert text.startswith("data.jsonl line 7, column 'messages': ")
    assert message in text


def test_the_limit_takes_the_first_rows_and_reads_no_further():
    read = []

    def rows():
        for number in range(10):
            read.append(number)
            yield Row({"quote": str(number), "author": "x"}, f"row {number}")

    block = TEXT.model_copy(update={"limit": 3})
    texts = [(f"row {number}", Text(f"Quote: {number}\nAuthor: x")) for number in range(3)]
    assert list(documents(rows(), block)) == texts
    assert read == [0, 1, 2]
