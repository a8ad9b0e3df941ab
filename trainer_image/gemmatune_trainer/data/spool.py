"""The documents of a dataset kept in one local file: read and hashed once, tokenised from there in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gemmatune_trainer.data import digests
from gemmatune_trainer.data.formats import Conversation, Document, ImageText, Text, Turn
from gemmatune_trainer.errors import DataInvalid

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Spool:
    """Documents on disk, with their places in the source."""

    path: Path
    rows: int
    digest: str
    """SHA-256 over all documents in order (hex); places do not count."""
    duplicates: int
    """Documents that repeat another."""

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                where, content = json.loads(line)
                yield where, _document(content)

    @property
    def digests(self) -> Path:
        """The file of the documents' hashes (digests.py)."""
        return _digests_of(self.path)


def write(documents: Iterable[tuple[str, Document]], path: Path) -> Spool:
    """Writes documents into the file `path`, and their hashes beside it. Memory does not grow with their number.

    Raises:
        DataInvalid: a text holds half of a character (a lone surrogate), which no tokenizer takes.
    """
    whole = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with path.open("wb", _BUFFER_BYTES) as file, _digests_of(path).open("wb") as hashes:
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
            hashes.write(hashlib.blake2b(data, digest_size=digests.DIGEST_BYTES).digest())
            file.write(b"[%s, %s]\n" % (json.dumps(where).encode(), data))
            rows += 1
    return Spool(path, rows, whole.hexdigest(), digests.duplicates(_digests_of(path)))


def _digests_of(path: Path) -> Path:
    return path.with_suffix(".digests")


def _content(document: Document) -> object:
    if isinstance(document, Text):
        return {"text": document.text}
    if isinstance(document, ImageText):
        return {"image": document.image, "prefix": document.prefix, "suffix": document.suffix}
    return {"system": document.system, "turns": [[turn.role, turn.text, turn.trained] for turn in document.turns]}


def _document(content: dict[str, object]) -> Document:
    if "text" in content:
        return Text(str(content["text"]))
    if "image" in content:
        return ImageText(*(str(content[name]) for name in ("image", "prefix", "suffix")))
    turns = content["turns"]
    assert isinstance(turns, list)
    return Conversation(str(content["system"]), tuple(Turn(*turn) for turn in turns))
