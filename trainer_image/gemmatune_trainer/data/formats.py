"""Rows to documents: what a row says, free of any model's template, with the trained turns marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from gemmatune_api import template
from gemmatune_api.runconfig import RunDataset
from gemmatune_api.spec import ChatFormat, ImageTextFormat, InstructFormat, TextFormat
from gemmatune_trainer.data.imagestore import ImageStore
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import DataInvalid, InvalidConfig

Role = Literal["user", "assistant"]

ROLES: Mapping[str, str] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
}
"""Names of roles that data uses, and what they mean."""
_CHAT_COLUMNS = ("messages", "conversations")
_SYSTEM_COLUMN = "system"
_MESSAGE_KEYS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is trained as a whole."""

    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; `text` is stripped of white space at its ends, as Gemma's templates do."""

    role: Role
    text: str
    trained: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of user and assistant in alternation, from a user to an assistant; `system` may be empty."""

    system: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class ImageText:
    """A prefix and the suffix that is trained, about the image of this digest."""

    image: str
    prefix: str
    suffix: str


Document = Text | Conversation | ImageText


def characters(document: Document) -> int:
    """How long a document is, without what the template adds."""
    if isinstance(document, Text):
        return len(document.text)
    if isinstance(document, ImageText):
        return len(document.prefix) + len(document.suffix)
    return len(document.system) + sum(len(turn.text) for turn in document.turns)


Format = Callable[[Row], Document]


def formatter(dataset: RunDataset, images: ImageStore | None = None) -> Format:
    """The function that turns a row into a document, by the format that is set.

    It raises DataInvalid, which names row, column and what was found. `images` takes in those of the rows; without it
    they are not looked at.

    Raises:
        InvalidConfig: no format is set, or the template cannot be read.
    """
    if dataset.text is not None:
        return _text(dataset.text)
    if dataset.instruct is not None:
        return _instruct(dataset.instruct)
    if dataset.chat is not None:
        return _chat(dataset.chat)
    if dataset.image_text is not None:
        return _image_text(dataset.image_text, images)
    raise InvalidConfig("dataset has none of text, instruct, chat and imageText", "Set exactly one of them.")


def documents(
    rows: Iterable[Row], dataset: RunDataset, images: ImageStore | None = None
) -> Iterator[tuple[str, Document]]:
    """The places and documents of rows, up to `limit` of them; `images` as `formatter` has it."""
    make = formatter(dataset, images)
    for row in islice(rows, dataset.limit):
        yield row.where, make(row)


def system_text(dataset: RunDataset) -> str:
    """The system text that the spec gives, also for prompts ("" where there is none)."""
    block = dataset.instruct or dataset.chat
    return (block.system_text or "") if block else ""


# text


def _text(block: TextFormat) -> Format:
    fill = _filler("dataset.text.template", block.template)

    def make(row: Row) -> Text:
        text = fill(row)
        if not text.strip():
            raise DataInvalid(f"{row.where}: the template gives an empty text", "Remove the row or correct it.")
        return Text(text)

    return make


def _filler(path: str, text: str) -> Callable[[Row], str]:
    """The function that fills a template from a row. Raises InvalidConfig where it cannot be read."""
    try:
        parts = template.parse(text)
    except template.TemplateError as error:
        raise InvalidConfig(f"{path}: {error}", "Write {column} for a value, {{ and }} for braces.") from error
    return lambda row: "".join(
        literal + ("" if column is None else _shown_value(row, column)) for literal, column in parts
    )


def _shown_value(row: Row, column: str) -> str:
    value = row.value(column)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise row.wrong(column, "a text or a number", value)


# imageText


def _image_text(block: ImageTextFormat, images: ImageStore | None) -> Format:
    prefix = _filler("dataset.imageText.prefix", block.prefix)
    suffix = _filler("dataset.imageText.suffix", block.suffix)

    def make(row: Row) -> ImageText:
        asked, answer = prefix(row), suffix(row)
        if not answer.strip():
            raise DataInvalid(
                f"{row.where}: the suffix's template gives an empty text", "Remove the row or correct it."
            )
        return ImageText(images.add(row, block.image) if images is not None else "", asked, answer)

    return make


# instruct


def _instruct(block: InstructFormat) -> Format:
    instruction_column = block.instruction or "instruction"
    output_column = block.output or "output"

    def make(row: Row) -> Conversation:
        instruction = _filled_text(row, instruction_column, "a text")
        further = _input(row, block.input)
        answer = _filled_text(row, output_column, "an answer")
        question = f"{instruction}\n{further}" if further else instruction
        return Conversation(block.system_text or "", (Turn("user", question), Turn("assistant", answer, trained=True)))

    return make


def _filled_text(row: Row, column: str, expected: str) -> str:
    value = row.value(column)
    if not isinstance(value, str):
        raise row.wrong(column, expected, value)
    if not (text := value.strip()):
        raise row.wrong(column, expected, value, "Remove the row or fill the column.")
    return text


def _input(row: Row, column: str | None) -> str:
    """Further input: the named column, else `input` where the row has it; null and empty are none."""
    value = row.values.get("input") if column is None else row.value(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise row.wrong(column or "input", "a text", value)
    return value.strip()


# chat


def _chat(block: ChatFormat) -> Format:
    def make(row: Row) -> Conversation:
        column = block.messages or next((name for name in _CHAT_COLUMNS if name in row.values), _CHAT_COLUMNS[0])
        messages = row.value(column)
        if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
            raise row.wrong(column, "a list of messages", messages)
        read = [_message(row, column, number, message) for number, message in enumerate(messages, start=1)]
        system = _system_column(row) or block.system_text or ""
        if read[0][0] == "system":
            system, read = read[0][1], read[1:]
        _check_order(row, column, [role for role, _ in read])
        last = len(read) - 1
        turns = tuple(
            Turn("assistant", text, trained=block.train != "last" or index == last)
            if role == "assistant"
            else Turn("user", text)
            for index, (role, text) in enumerate(read)
        )
        return Conversation(system, turns)

    return make


def _system_column(row: Row) -> str:
    """The row's own system text beside its messages, as ShareGPT's files have it; null and empty are none."""
    value = row.values.get(_SYSTEM_COLUMN)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise row.wrong(_SYSTEM_COLUMN, "a text", value)
    return value if value.strip() else ""


def _message(row: Row, column: str, number: int, message: Any) -> tuple[str, str]:
    """Role and text of a message, in either of the two common forms."""
    place = f"message {number}"
    keys = next((pair for pair in _MESSAGE_KEYS if isinstance(message, Mapping) and set(pair) <= set(message)), None)
    if keys is None:
        raise row.wrong(column, f"{place} with role and content (or from and value)", message)
    name, content = message[keys[0]], message[keys[1]]
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise row.wrong(column, f"{place} to have a {keys[0]} out of {', '.join(ROLES)}", name)
    if not isinstance(content, str):
        raise row.wrong(column, f"{place} to have a text as its {keys[1]}", content)
    if not content.strip():
        raise row.wrong(column, f"{place} to have a text", content, "Remove the message or fill it.")
    # Gemma's own templates strip turns, but keep the system text as it is.
    return role, content if role == "system" else content.strip()


def _check_order(row: Row, column: str, roles: Sequence[str]) -> None:
    """User and assistant take turns, from a user to an assistant."""
    for index, role in enumerate(roles):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            found = "a system message that is not the first" if role == "system" else f"two {role} messages in a row"
            if index == 0:
                found = f"{role} as the first role"
            raise DataInvalid(
                f"{row.where}, column {column!r}: user and assistant must take turns, beginning with user; "
                f"found {found}",
                "Correct or remove the row.",
            )
    if not roles or roles[-1] != "assistant":
        raise DataInvalid(
            f"{row.where}, column {column!r}: a conversation must end with an assistant's message, "
            f"found {roles[-1] + ' as the last role' if roles else 'no message but the system text'}",
            "Correct or remove the row.",
        )
