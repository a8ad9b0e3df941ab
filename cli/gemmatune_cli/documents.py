"""Reads resources from files as kubectl does: several documents in a file, `-` for standard input, whole folders."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmatune_api import names, validate, yamlio
from gemmatune_api.errors import InvalidResourceError, shown
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
        CommandError: as `sources` and `documents`.
    """
    return [document for file in sources(paths) for document in documents(file)]


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
    return CommandError(f"no {names.KIND} in {', '.join(map(_label, paths))}", "Name a file that holds one.")


def sources(paths: Sequence[str]) -> list[str]:
    """The files that are meant, `-` for standard input; of a folder those with a suffix of YAML or JSON.

    Raises:
        CommandError: a folder holds none.
    """
    return [file for path in paths for file in _files(path)]


def _files(path: str) -> list[str]:
    if path == STDIN or not Path(path).is_dir():
        return [path]
    files = sorted(str(file) for file in Path(path).iterdir() if file.suffix in SUFFIXES and not file.is_dir())
    if not files:
        raise CommandError(
            f"{path}: the folder holds no file that ends in {', '.join(SUFFIXES)}", "Name the file itself."
        )
    return files


def documents(file: str) -> Iterator[Document]:
    """The documents of one file of `sources`.

    Raises:
        CommandError: the file cannot be read, is no YAML, or holds something that is no object; those before it have
            come out by then.
    """
    label = _label(file)
    try:
        contents = yamlio.load_all(text_of(file))
    except yamlio.YamlError as error:
        raise CommandError(f"{label}: {error}") from error
    for number, content in enumerate(contents, start=1):
        source = label if len(contents) == 1 else f"{label} (document {number})"
        if not isinstance(content, dict):
            raise CommandError(
                f"{source}: holds {shown(content)} where an object is expected",
                "Begin it with apiVersion and kind, and put --- between the objects of a file.",
            )
        yield Document(source, content)


def text_of(file: str) -> str:
    """The text of a file, or of standard input.

    Raises:
        CommandError: it cannot be read, or is no UTF-8.
    """
    label = _label(file)
    try:
        return (_standard_input() if file == STDIN else Path(file).read_bytes()).decode("utf-8")
    except OSError as error:
        raise CommandError(f"{label}: cannot be read: {error.strerror or error}", "Name a file to read.") from error
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{label}: is no UTF-8 text: {error.reason} at byte {error.start}", "Save it as UTF-8."
        ) from error


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise CommandError("standard input: is closed", "Pipe a file into it, or name one.")
    return sys.stdin.buffer.read()


def _label(file: str) -> str:
    return "standard input" if file == STDIN else file
