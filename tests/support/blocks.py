"""The code blocks of the pages that people copy from: README, quickstart and recipes."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs/quickstart.md", ROOT / "docs/recipes.md")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language, in their order."""
    return [text for found, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def commands() -> list[tuple[str, str]]:
    """Page and command of every line that begins with a prompt; lines that end with a backslash are one."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            joined = block.replace("\\\n", " ")
            lines = [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]
            found += [(page.name, re.sub(r"\s+# .*", "", line)) for line in lines]
    return found


def resources() -> list[str]:
    """The GemmaFineTunes of the pages."""
    return [block for page in PAGES for block in blocks(page, "yaml") if "kind: GemmaFineTune" in block]
