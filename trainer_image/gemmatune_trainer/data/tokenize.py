"""Segments to tokens and labels, by the model's own tokenizer, with exact borders between trained and masked text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers

from gemmatune_api.catalog import GenerationRules
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.data.templates import Segment
from gemmatune_trainer.errors import InvalidConfig

TOKENIZER_FILE = "tokenizer.json"


class Tokens(NamedTuple):
    """A tokenised row: input ids and, for each, its label (the id itself, or IGNORED where it is not trained)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def labelled(self) -> int:
        """Tokens with a loss; the first token of a row is predicted from nothing and never counts."""
        rest = self.labels[1:]
        return len(rest) - rest.count(IGNORED)

    def cut(self, length: int) -> Tokens:
        """The first `length` tokens."""
        return Tokens(self.input_ids[:length], self.labels[:length])


@dataclass(frozen=True)
class Piece:
    """A text to encode, or one control token by its id."""

    text: str
    trained: bool
    token: int | None = None


class RowTokenizer:
    """The model's tokenizer, used so that only the template makes control tokens.

    The plain text between two control tokens is encoded as a whole, as the model's own tokenizer does it, with one
    border more: a trained text begins with a token of its own, because a model that answers also begins there. Control
    tokens that are spelled out inside data (`<end_of_turn>`, `<eos>`, `<unused7>`) are encoded as the characters they
    are made of: a row can neither end its turn early nor open another.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, rules: GenerationRules, fingerprint: str) -> None:
        """Takes over the tokenizer (its padding and truncation are switched off).

        Raises:
            InvalidConfig: the tokenizer lacks a control token of the generation.
        """
        self.rules = rules
        self.fingerprint = fingerprint
        """SHA-256 of tokenizer.json."""
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        controls = [rules.bos, rules.eos, rules.pad, *((rules.turn_start, rules.turn_end) if rules.chat else ())]
        self._controls = {text: self._control_id(text) for text in controls}
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        longest_first = sorted(special | set(controls), key=lambda text: (-len(text), text))
        self._spelled_out = re.compile("|".join(map(re.escape, longest_first)))

    @classmethod
    def load(cls, path: Path, rules: GenerationRules) -> RowTokenizer:
        """The tokenizer of a model's tokenizer.json.

        Raises:
            InvalidConfig: the file cannot be read, or lacks a control token of the generation.
        """
        data = path.read_bytes()
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises plain Exception
            raise InvalidConfig(f"{path.name} of the model cannot be read: {error}") from error
        return cls(tokenizer, rules, hashlib.sha256(data).hexdigest())

    def _control_id(self, text: str) -> int:
        found = self.find_id(text)
        if found is None:
            raise InvalidConfig(
                f"the model's tokenizer has no token {text!r}, which generation {self.rules.generation} needs",
                "Use a model with Gemma's own tokenizer.",
            )
        return found

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return self._controls[self.rules.pad]

    @property
    def bos_id(self) -> int:
        """Id of the token that begins every row."""
        return self._controls[self.rules.bos]

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a text."""
        return self._controls[self.rules.eos]

    def encode(self, segments: Sequence[Segment]) -> Tokens:
        """Tokens and labels of one rendered row."""
        return self.encode_batch([segments])[0]

    def encode_prompt(self, segments: Sequence[Segment]) -> list[int]:
        """Input ids of a rendered prompt."""
        return self.encode(segments).input_ids

    def encode_batch(self, rows: Sequence[Sequence[Segment]]) -> list[Tokens]:
        """Tokens and labels of rendered rows; the tokenizer works on all of them at once."""
        pieces = [list(self._pieces(segments)) for segments in rows]
        texts = [piece.text for row in pieces for piece in row if piece.token is None]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return [
            _assemble((piece, [piece.token] if piece.token is not None else next(encoded).ids) for piece in row)
            for row in pieces
        ]

    def find_id(self, text: str) -> int | None:
        """Id of the token with exactly this text, None where there is none."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without control tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The tokens as readable text: control tokens by name, spaces as spaces."""
        return [(self._tokenizer.id_to_token(token) or "").replace("▁", " ") for token in ids]

    def _pieces(self, segments: Sequence[Segment]) -> Iterator[Piece]:
        """Neighbouring plain segments of one kind joined, then cut inside every control token that is spelled out."""
        text, trained = "", False
        for segment in (*segments, Segment("", control=True)):
            if text and (segment.control or segment.trained != trained):
                yield from (Piece(part, trained) for part in self._defused(text))
                text = ""
            if segment.control and segment.text:
                yield Piece(segment.text, segment.trained, self._controls[segment.text])
            elif not segment.control:
                text, trained = text + segment.text, segment.trained

    def _defused(self, text: str) -> list[str]:
        """The text in parts, none of which holds a whole control token."""
        borders = [match.start() + 1 for match in self._spelled_out.finditer(text)]
        return [text[begin:end] for begin, end in zip([0, *borders], [*borders, len(text)], strict=True)]


def _assemble(pieces: Iterable[tuple[Piece, list[int]]]) -> Tokens:
    input_ids: list[int] = []
    labels: list[int] = []
    for piece, ids in pieces:
        input_ids += ids
        labels += ids if piece.trained else [IGNORED] * len(ids)
    return Tokens(input_ids, labels)


class Fitted(NamedTuple):
    """What became of a row: its tokens (None: dropped) and how many tokens were cut off."""

    tokens: Tokens | None
    cut: int = 0


def fit(tokens: Tokens, max_length: int, too_long: Literal["truncate", "drop", "fail"]) -> Fitted | None:
    """A row brought to at most `max_length` tokens; None where it is too long and `too_long` is fail.

    A row that has no trained token left after the cut is dropped.
    """
    excess = len(tokens.input_ids) - max_length
    if excess <= 0:
        return Fitted(tokens)
    if too_long == "fail":
        return None
    kept = tokens.cut(max_length)
    if too_long == "drop" or not kept.labelled:
        return Fitted(None)
    return Fitted(kept, excess)
