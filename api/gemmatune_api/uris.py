"""What no URI of an output may hold, wherever it is written."""

from __future__ import annotations

from collections.abc import Iterator

from gemmatune_api.errors import Problem, shown


def plain(path: str, uri: str) -> Iterator[Problem]:
    """A plain prefix, without what a shell or a URL would read into it; `path` is where it is written."""
    if any(ord(character) < 33 for character in uri) or any(mark in uri for mark in "*?#"):
        yield Problem(path, "has a space, line break, *, ? or #", "Remove it.", shown(uri))
    if ".." in uri.split("/"):
        yield Problem(path, "has a .. in its path", "Write the path without it.", shown(uri))
