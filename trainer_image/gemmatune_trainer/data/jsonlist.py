"""The items of a JSON list, read in pieces: memory holds one item and the piece it ends in, however long the list."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

_PIECE_BYTES = 1 << 20
_LONGEST_TOKEN = 16
"""Characters of JSON that have a meaning only together, such as `false` or `\\ud83d`, are fewer."""
_SPACE = " \t\r\n"
_AFTER_NUMBER = frozenset(",]" + _SPACE)
"""What shows that a number has ended; a further digit may lie in the next piece."""


class NotAList(ValueError):
    """The text is no JSON list; the message says what was expected, and in which line and character."""


def items(file: BinaryIO) -> Iterator[Any]:
    """The items of the list that a file holds.

    Raises:
        NotAList: it holds none, or none that is whole.
        UnicodeDecodeError: it is no UTF-8; `start` counts bytes from the file's beginning.
    """
    text = _Text(file)
    text.take("[")
    if text.peek() == "]":
        text.take("]")
    else:
        while True:
            yield text.value()
            if text.peek() != ",":
                break
            text.take(",")
        text.take("]")
    if text.peek():
        raise text.error("Extra data", text.at)


class _Text:
    """The text of a file from the place that is read next; what lies before it is forgotten piece by piece."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._bytes = 0
        self._text = ""
        self._lines = 0
        self._characters = 0
        self._whole = False
        self.at = 0
        """Place in the text that is held."""

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self.at < len(self._text) and self._text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def take(self, sign: str) -> None:
        """Goes past a sign that has to come next."""
        if self.peek() != sign:
            expected = "Expecting value" if sign == "[" else "Expecting ',' delimiter"
            raise self.error(expected, self.at)
        self.at += 1

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                found, end = self._json.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                # Only what goes on behind the end of the piece may still become a value.
                cut = error.pos >= len(self._text) - _LONGEST_TOKEN or error.msg.startswith("Unterminated")
                if not cut or not self._more():
                    raise self.error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self.error(str(error), self.at) from error
            else:
                closed = isinstance(found, str | list | dict) or self._text[end : end + 1] in _AFTER_NUMBER
                if closed or not self._more():
                    self.at = end
                    return found

    def error(self, expected: str, place: int) -> NotAList:
        """The error of a place in the text that is held."""
        before = self._text[:place]
        line = self._lines + before.count("\n") + 1
        newline = before.rfind("\n")
        character = place - newline if newline >= 0 else self._characters + place + 1
        return NotAList(f"{expected} in line {line}, character {character}")

    def _more(self) -> bool:
        """Reads a further piece, at least as long as what is held; False at the end of the file."""
        if self._whole:
            return False
        passed = self._text[: self.at]
        self._lines += passed.count("\n")
        newline = passed.rfind("\n")
        self._characters = len(passed) - newline - 1 if newline >= 0 else self._characters + len(passed)
        held = self._text[self.at :]
        data = self._file.read(max(_PIECE_BYTES, len(held)))
        self._whole = not data
        waiting = len(self._utf8.getstate()[0])
        try:
            self._text = held + self._utf8.decode(data, final=self._whole)
        except UnicodeDecodeError as error:
            begin = self._bytes - waiting
            raise UnicodeDecodeError(
                error.encoding, b"", begin + error.start, begin + error.end, error.reason
            ) from error
        self._bytes += len(data)
        self.at = 0
        return True
