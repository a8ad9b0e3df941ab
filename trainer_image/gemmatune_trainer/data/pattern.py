"""Paths with wildcards: which files of a folder, bucket or repository are meant."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gemmatune_trainer.data.readers import reader_of

WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A path that may hold wildcards, split where the first of them stands.

    `*`, `?` and `[...]` stay within one directory, `**` does not. An empty `rest` means the directory `base` itself.
    """

    base: str
    rest: str

    @classmethod
    def of(cls, path: str) -> Pattern:
        """The pattern of a path with `/` between its parts."""
        parts = path.split("/")
        fixed = next((index for index, part in enumerate(parts) if WILDCARDS.search(part)), len(parts) - 1)
        return cls("/".join(parts[:fixed]), "/".join(parts[fixed:]))

    @property
    def text(self) -> str:
        """The whole path."""
        return f"{self.base}/{self.rest}" if self.base else self.rest

    def matches(self, name: str) -> bool:
        """Whether a name relative to `base` is meant; of a directory, what lies directly in it and can be read."""
        if not self.rest:
            return "/" not in name and reader_of(name) is not None
        return re.fullmatch(_expression(self.rest), name) is not None

    def covers(self, path: str) -> bool:
        """Whether a whole path is meant."""
        begin = f"{self.base}/" if self.base else ""
        return path.startswith(begin) and self.matches(path.removeprefix(begin))


def _expression(pattern: str) -> str:
    """A regular expression for a glob pattern."""
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^\]]+\]|.", pattern, flags=re.DOTALL)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def one(token: str) -> str:
        if token in special:
            return special[token]
        if token.startswith("[") and len(token) > 1:
            return "[^" + token[2:] if token.startswith("[!") else token
        return re.escape(token)

    return "".join(one(token) for token in tokens)
