"""YAML as kubectl reads it: 1.1 scalars by the rules of Go's library, and no key twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gemmatune_api.errors import InvalidResourceError, Problem

NODES = 100_000
"""Largest number of values in a document, aliases written out."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = "!plain"
_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLS = {
    spelling: value
    for value, names in ((True, ("y", "yes", "true", "on")), (False, ("n", "no", "false", "off")))
    for name in names
    for spelling in (name, name.capitalize(), name.upper())
}
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WHOLE_AS_TEXT = 1e21
"""From here on Go writes whole numbers with an exponent."""


class YamlError(InvalidResourceError):
    """A text that is no YAML or JSON that kubectl would take; the problem's path is the line."""

    def __init__(self, line: int, message: str, remedy: str, column: int | None = None) -> None:
        place = f"line {line}" if column is None else f"line {line}, column {column}"
        super().__init__([Problem(place, message, remedy)])


def load_all(text: str) -> list[object]:
    """The documents of a YAML or JSON text as JSON values; empty ones are left out.

    A list (of kind List, or a kind that ends so) is its items.

    Raises:
        YamlError: no YAML, a key twice in one block, an alias of itself, or more than 100,000 values.
    """
    documents = _json(text)
    if documents is None:
        documents = [_document(chunk, first) for chunk, first in _chunks(text)]
    return [item for document in documents if document is not None for item in _items(document)]


def _items(document: object) -> list[object]:
    items = document.get("items") if isinstance(document, dict) else None
    if isinstance(document, dict) and str(document.get("kind")).endswith("List") and isinstance(items, list):
        return [item for entry in items for item in _items(entry)]
    return [document]


def _json(text: str) -> list[object] | None:
    """The values of a JSON text, one after the other; None where it is something else."""
    rest = text.lstrip("\ufeff \t\r\n")
    if not rest.startswith("{"):
        return None
    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant)
    documents = []
    while rest:
        try:
            document, end = decoder.raw_decode(rest)
        except (json.JSONDecodeError, RecursionError):
            return None
        documents.append(document)
        rest = rest[end:].lstrip()
    return documents


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            # Only the YAML reader knows lines; it reads JSON too and finds the same.
            raise json.JSONDecodeError(f"the key {key!r} appears twice", "", 0)
        found[key] = value
    return found


def _no_constant(name: str) -> object:
    raise json.JSONDecodeError(f"{name} is no JSON", "", 0)


def _chunks(text: str) -> Iterator[tuple[str, int]]:
    """The documents' texts, each with the number of its first line."""
    lines = [line + "\n" for line in text.removeprefix("\ufeff").split("\n")]
    begin = 0
    for index, line in enumerate(lines):
        if not line.startswith("---"):
            continue
        if line[3:].split("#")[0].strip():
            raise YamlError(index + 1, "something follows the --- that begins a document", "Write it on the next line.")
        yield "".join(lines[begin:index]), begin + 1
        begin = index + 1
    yield "".join(lines[begin:]), begin + 1


class _Loader(yaml.SafeLoader):
    """A loader that leaves the meaning of plain scalars to this module."""

    yaml_implicit_resolvers = {None: [(_PLAIN, re.compile("", re.DOTALL))]}  # noqa: RUF012


def _document(chunk: str, first_line: int) -> object:
    try:
        loader = _Loader(chunk)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return None if node is None else _Reader(first_line).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = (mark.line if mark else 0) + first_line
        words = " ".join(part for part in (error.context, error.problem) if part)
        column = mark.column + 1 if mark else None
        remedy = "Indent with spaces." if r"'\t'" in words else "Correct it."
        raise YamlError(line, f"is no YAML: {words}", remedy, column) from error
    except yaml.reader.ReaderError as error:
        line = chunk.count("\n", 0, error.position) + first_line
        raise YamlError(line, f"has a character that YAML forbids: U+{error.character:04X}", "Remove it.") from error
    except yaml.YAMLError as error:
        raise YamlError(first_line, f"is no YAML: {error}", "Correct it.") from error
    except RecursionError as error:
        raise YamlError(first_line, "is nested too deep", "Flatten it.") from error


class _Reader:
    """Nodes of one document into JSON values."""

    def __init__(self, first_line: int) -> None:
        self.first_line = first_line
        self.left = NODES
        self.open: set[int] = set()

    def fault(self, node: Node, message: str, remedy: str) -> YamlError:
        mark = node.start_mark
        return YamlError(mark.line + self.first_line, message, remedy, mark.column + 1)

    def read(self, node: Node) -> Any:
        """The value of a node. Aliases are written out, which the count bounds."""
        self.left -= 1
        if self.left < 0:
            raise self.fault(node, f"has more than {NODES} values, aliases written out", "Use fewer aliases.")
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        if id(node) in self.open:
            raise self.fault(node, "holds an alias of itself", "Write the value out.")
        self.open.add(id(node))
        if isinstance(node, SequenceNode):
            self.tag(node, "seq")
            value: Any = [self.read(child) for child in node.value]
        else:
            assert isinstance(node, MappingNode)
            self.tag(node, "map")
            value = self.mapping(node)
        self.open.remove(id(node))
        return value

    def tag(self, node: Node, *known: str) -> None:
        if node.tag.removeprefix(_TAG) not in known:
            raise self.fault(node, f"has the tag {node.tag}", "Remove the tag.")

    def mapping(self, node: MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own: set[str] = set()
        for key_node, value_node in node.value:
            if key_node.tag == _PLAIN and key_node.value == "<<":
                # Go's library lets the block win over the keys before it; the keys after it win.
                found.update(self.merge(value_node))
                continue
            key = self.key(key_node)
            if key in own:
                raise self.fault(key_node, f"the key {key!r} appears twice in one block", "Remove one of them.")
            own.add(key)
            found[key] = self.read(value_node)
        return found

    def merge(self, node: Node) -> dict[str, Any]:
        """What `<<` brings: one block, or several of which the first wins."""
        value = self.read(node)
        blocks = value if isinstance(value, list) else [value]
        if not all(isinstance(block, dict) for block in blocks):
            raise self.fault(node, "<< takes a block or a list of blocks", "Name the anchor of a block.")
        return {key: block[key] for block in reversed(blocks) for key in block}

    def key(self, node: Node) -> str:
        key = self.scalar(node) if isinstance(node, ScalarNode) else None
        if isinstance(key, bool):
            return "true" if key else "false"
        if isinstance(key, str | int | float):
            return str(key)
        raise self.fault(node, "a key must be a text", "Write a name before the colon.")

    def scalar(self, node: ScalarNode) -> Any:
        text: str = node.value
        if node.tag == _TAG + "str":
            return text
        if _NOT_FINITE.fullmatch(text):
            raise self.fault(node, f"{text} is no number of JSON", "Write a finite number, or quotes around it.")
        value = plain(text)
        if node.tag == _PLAIN:
            return value
        kinds: dict[str, tuple[type, ...]] = {
            "int": (int,),
            "float": (int, float),
            "bool": (bool,),
            "null": (type(None),),
        }
        self.tag(node, *kinds)
        if type(value) not in kinds[node.tag.removeprefix(_TAG)]:
            raise self.fault(node, f"{text!r} does not suit the tag {node.tag}", "Remove the tag.")
        return value


def plain(text: str) -> str | int | float | bool | None:
    """The value of a scalar without quotes: `yes` is true, 010 is 8, 1_0 is 10, 2e-4 a number, a date a text."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if not text[0].isascii() or text[0] not in "+-.0123456789":
        return text
    digits = text.replace("_", "")
    whole = _INTEGER.fullmatch(digits)
    if whole:
        sign, *bodies = whole.groups()
        base, body = next((base, body) for base, body in zip((16, 2, 8, 10), bodies, strict=True) if body is not None)
        number = int(body, base) * (-1 if sign == "-" else 1)
        if -(2**63) <= number < 2**64:
            return number
    if _FLOAT.fullmatch(digits) and abs(real := float(digits)) != float("inf"):
        return int(real) if real.is_integer() and abs(real) < _WHOLE_AS_TEXT else real
    return text
