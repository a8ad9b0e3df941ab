"""The rows that every arm of the trainer's benchmark trains on: made from packaged quotes, always the same."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

Row = tuple[list[int], list[int]]
"""Input ids, and labels of the same length (-100 where not trained; the first one never is)."""
Kind = Literal["quotes", "instruct"]
IGNORED = -100
BOS, EOS, TURN_END = 2, 1, 106
SHORTEST, LONGEST = 100, 400
"""Tokens of an instruct row."""


@dataclass(frozen=True)
class Rows:
    """Rows to train on and rows held out."""

    train: list[Row]
    held_out: list[Row]

    def row(self, index: int) -> Row:
        """One row to train on, as a backend wants it."""
        return self.train[index]

    def write(self, path: Path) -> None:
        """Writes them for the arms."""
        path.write_text(json.dumps([self.train, self.held_out]))

    @staticmethod
    def read(path: Path) -> Rows:
        """What `write` wrote."""
        train, held_out = json.loads(path.read_text())
        return Rows([(ids, labels) for ids, labels in train], [(ids, labels) for ids, labels in held_out])


def make(kind: Kind, tokenizer: Path, train: int, held_out: int) -> Rows:
    """`train` + `held_out` different rows, tokenised.

    quotes: R1's text rows, all labelled. instruct: three to eight quotes and a question for one of them, in Gemma's
    turns; only the answer and its terminator are labelled.

    Raises:
        ValueError: the package has too few quotes.
    """
    import tokenizers

    encoder = tokenizers.Tokenizer.from_file(str(tokenizer))
    chance = random.Random(11)
    quotes = _quotes()
    chance.shuffle(quotes)
    rows: list[Row] = []
    if kind == "quotes":
        rows = [_text(encoder, f"Quote: {text}\nAuthor: {author}") for text, author in quotes]
    else:
        while len(rows) < train + held_out:
            chosen = chance.sample(quotes, chance.randint(3, 8))
            row = _instruct(encoder, chosen, chance.randrange(len(chosen)))
            if SHORTEST <= len(row[0]) <= LONGEST:
                rows.append(row)
    if len(rows) < train + held_out:
        raise ValueError(f"{train + held_out} rows are wanted, the quotes give {len(rows)}")
    return Rows(rows[:train], rows[train : train + held_out])


def write_quotes(path: Path) -> None:
    """The quotes as the rows of a file, for a whole run."""
    lines = (json.dumps({"text": text, "from": author}) + "\n" for text, author in _quotes())
    path.write_text("".join(lines))


def _quotes() -> list[tuple[str, str]]:
    found = json.loads(resources.files("inspirational_quotes").joinpath("quotes.json").read_text("utf-8"))
    return [(item["text"], item["from"]) for item in found if item["from"]]


def _text(encoder: object, text: str) -> Row:
    ids = [BOS, *_encode(encoder, text), EOS]
    return ids, [IGNORED, *ids[1:]]


def _instruct(encoder: object, quotes: list[tuple[str, str]], asked: int) -> Row:
    listed = "\n".join(f"{number}. {text} ({author})" for number, (text, author) in enumerate(quotes, 1))
    question = f"Here are {len(quotes)} quotes:\n{listed}\nWrite number {asked + 1} with its author."
    prompt = [BOS, *_encode(encoder, f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n")]
    text, author = quotes[asked]
    answer = [*_encode(encoder, f"Quote: {text}\nAuthor: {author}"), TURN_END]
    return prompt + answer, [IGNORED] * len(prompt) + answer


def _encode(encoder: object, text: str) -> list[int]:
    found: list[int] = encoder.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
    return found
