"""The documents of a dataset kept in one local file: read and hashed once, tokenised from there in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmatune_trainer.data.formats import Conversation, Document, Text, Turn
from gemmatune_trainer.errors import DataInvalid

_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Spool:
    """Documents on disk, with their places in the source."""

    path: Path
    rows: int
    digest: str
    """SHA-256 over all documents in order (hex); places do not count."""
    duplicates: int
    """Documents that repeat another."""
    digests: npt.NDArray[np.uint64]
    """A hash of each document, shape [rows]: equal documents have equal ones."""

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                where, content = json.loads(line)
                yield where, _document(content)


def write(documents: Iterable[tuple[str, Document]], path: Path) -> Spool:
    """Writes documents into the file `path`. Memory: 8 bytes a document.

    Raises:
        DataInvalid: a text holds half of a character (a lone surrogate), which no tokenizer takes.
    """
    whole = hashlib.sha256()
    digests = bytearray()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for where, document in documents:
            content = json.dumps(_content(document), ensure_ascii=False)
            try:
                data = content.encode()
            except UnicodeEncodeError as error:
                raise DataInvalid(
                    f"{where}: the text holds half of a character ({error.object[error.start]!r})",
                    "Write the character whole: a \\u escape of a surrogate needs its other half.",
                ) from error
            whole.update(data + b"\n")
            digests += hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
            file.write(f"[{json.dumps(where)}, {content}]\n")
    each = np.frombuffer(bytes(digests), dtype="<u8")
    return Spool(path, len(each), whole.hexdigest(), len(each) - len(np.unique(each)), each)


def held_out(digests: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are kept for evaluation: at least `fraction` of them, and at least one; shape [rows].

    It depends on the documents alone, not on their order, and equal documents are never on both sides.
    """
    unique, counts = np.unique(digests, return_counts=True)
    enough = int(np.searchsorted(np.cumsum(counts), max(1.0, fraction * len(digests)))) + 1
    return np.isin(digests, unique[:enough])


def _content(document: Document) -> object:
    if isinstance(document, Text):
        return {"text": document.text}
    return {"system": document.system, "turns": [[turn.role, turn.text, turn.trained] for turn in document.turns]}


def _document(content: dict[str, object]) -> Document:
    if "text" in content:
        return Text(str(content["text"]))
    turns = content["turns"]
    assert isinstance(turns, list)
    return Conversation(str(content["system"]), tuple(Turn(*turn) for turn in turns))
