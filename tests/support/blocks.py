"""What people copy: the code blocks of the pages, commands in their text, and those that examples open with."""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
EXAMPLES = tuple(sorted((ROOT / "examples").rglob("*.yaml")))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_]\w*=")
_MENTIONED = r"(?:gft|make|uv tool|kubectl|helm|python -m)"
_WITH_VALUE = ("--extra", "--group")
"""Options of `uv run` whose value is the next word."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page."""

    page: str
    """Its path in the project."""
    line: str
    """As a shell gets it."""

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"

    @property
    def whole(self) -> list[str]:
        """Its words, without the variables that are set for it alone."""
        words = shlex.split(self.line)
        while len(words) > 1 and _VARIABLE.match(words[0]):
            words = words[1:]
        return words

    @property
    def uv_options(self) -> list[str]:
        """What `uv run` itself is told."""
        words = self.whole
        if words[:2] != ["uv", "run"]:
            return []
        place = 2
        while place < len(words) and words[place].startswith("-"):
            place += 2 if words[place] in _WITH_VALUE else 1
        return words[2:place]

    @property
    def words(self) -> list[str]:
        """The program that really works, and what it is told: behind `uv run` and `python -m`."""
        words = self.whole
        if words[:2] == ["uv", "run"]:
            words = words[2 + len(self.uv_options) :]
        return words[2:] if words[:1] in (["python"], ["python3"]) and words[1] == "-m" else words

    @property
    def program(self) -> str:
        return self.words[0]


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language, in their order."""
    return [text for found, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


@functools.cache
def commands() -> tuple[Command, ...]:
    """Every line of a console block that begins with a prompt (lines that end with a backslash are one), and the
    commands in the comment at the head of an example.
    """
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [_command(page, line[2:]) for line in lines if line.startswith("$ ")]
    for example in EXAMPLES:
        lines = re.findall(r"(?m)^#   (\S.*)$", example.read_text(encoding="utf-8"))
        found += [_command(example, line) for line in lines]
    return tuple(found)


@functools.cache
def mentions() -> tuple[Command, ...]:
    """Commands between backticks in the text of the pages, often without all that they need."""
    found = set()
    for page in PAGES:
        text = _ANY_BLOCK.sub("", page.read_text(encoding="utf-8"))
        found |= {_command(page, line) for line in re.findall(rf"`({_MENTIONED} [^`]+)`", text)}
    return tuple(sorted(found, key=str))


def _command(page: Path, line: str) -> Command:
    return Command(str(page.relative_to(ROOT)), re.sub(r"\s+# .*", "", line).strip())


def resources() -> list[str]:
    """The GemmaFineTunes of the pages."""
    return [block for page in PAGES for block in blocks(page, "yaml") if "kind: GemmaFineTune" in block]
