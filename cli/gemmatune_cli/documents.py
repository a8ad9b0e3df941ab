"""Reads resources from files as kubectl does: several documents in a file, `-` for standard input, whole folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmatune_api import names, validate, yamlio
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.spec import GemmaFineTune
from gemmatune_cli.console import CommandError

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file."""

    source: str
    """The file, and the number of the document where there are several."""
    content: dict[str, Any]
    """The object, not checked yet."""

    @property
    def title(self) -> str:
        """Kind and name, as far as they can be read."""
        metadata = self.content.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return f"{self.content.get('kind') or 'object without kind'} {name or 'without name'}"

    @property
    def is_fine_tune(self) -> bool:
        """Whether it is meant as a GemmaFineTune, of whatever version."""
        group = str(self.content.get("apiVersion", "")).split("/", 1)[0]
        return group == names.GROUP or self.content.get("kind") == names.KIND


def read(paths: Sequence[str]) -> list[Document]:
    """The documents of all files, in their order.

    Raises:
        CommandError: a file cannot be read, is no YAML, or holds something that is no object.
    """
    return [document for path in paths for file in _files(path) for document in _documents(file)]


def fine_tunes(paths: Sequence[str]) -> list[GemmaFineTune]:
    """The GemmaFineTunes of all files, checked; other objects are left out.

    Raises:
        CommandError: as `read`, for a resource that is not valid, and for files without a GemmaFineTune.
    """
    found = [_parsed(document) for document in read(paths) if document.is_fine_tune]
    if not found:
        raise none_found(paths)
    return found


def _parsed(document: Document) -> GemmaFineTune:
    try:
        return validate.parse(document.content)
    except InvalidResourceError as error:
        raise CommandError(f"{document.source}: {document.title} is not valid:\n{error}") from error


def none_found(paths: Sequence[str]) -> CommandError:
    """The error of files that hold other objects only, or nothing."""
    return CommandError(f"no {names.KIND} in {', '.join(paths)}", "Name a file that holds one.")


def _files(path: str) -> list[str]:
    if path == STDIN or not Path(path).is_dir():
        return [path]
    files = sorted(str(file) for file in Path(path).iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise CommandError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
    return files


def _documents(file: str) -> Iterator[Document]:
    label = "standard input" if file == STDIN else file
    try:
        text = sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{label}: cannot be read: {error}") from error
    try:
        contents = yamlio.load_all(text)
    except yamlio.YamlError as error:
        raise CommandError(f"{label}: {error}") from error
    for number, content in enumerate(contents, start=1):
        source = label if len(contents) == 1 else f"{label} (document {number})"
        if not isinstance(content, dict):
            raise CommandError(f"{source}: holds {type(content).__name__} where an object is expected")
        yield Document(source, content)
