"""The quotes of the Python package inspirational-quotes: real rows for the tests."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path


def quote_rows() -> list[dict[str, str]]:
    """Rows with the keys text and from, in the package's order."""
    package = importlib.util.find_spec("inspirational_quotes")
    if package is None or package.origin is None:
        raise FileNotFoundError("no inspirational-quotes here: install the dependency group `dev` (uv sync)")
    (source,) = Path(package.origin).parent.rglob("quotes.json")
    rows: list[dict[str, str]] = json.loads(source.read_text())
    return rows
