"""What a section of docs/performance.md is made of: its text, tables over lists of a result file, a drawing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tools import bars

MIB = 2**20
GIB = 2**30

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A table over a list in the file: which rows, and a function of the row per column."""

    rows: Callable[[Row], Iterable[Row]]
    columns: dict[str, Callable[[Row], str]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing of what the file holds; `shows` stands in its place where it cannot be seen."""

    shows: str
    groups: Callable[[Row], Sequence[bars.Group]]


@dataclass(frozen=True, slots=True)
class Report:
    """A section of the document, from one file."""

    title: str
    command: str
    text: str
    tables: tuple[Table, ...]
    picture: Picture | None = None


def mib(value: float) -> str:
    return f"{value / MIB:,.0f}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`0.12 (0.10 to 0.15)`: the median of the repeats, with the least and the most of them."""
    low, middle, high = min(values), statistics.median(values), max(values)
    shown = f"{middle:,.{digits}f}"
    return shown if low == high else f"{shown} ({low:,.{digits}f} to {high:,.{digits}f})"


TARGETS = Table(
    rows=lambda found: found["targets"],
    columns={
        "What": lambda row: row["what"],
        "Target": lambda row: row["target"],
        "Measured": lambda row: f"{spread(row['measured'], row['digits'])} {row['unit']}".rstrip(),
        "Met": lambda row: {True: "yes", False: "no", None: "not shown"}[row["met"]],
    },
    title="Targets",
)
"""What a benchmark was to reach, and did."""
PARTS = Table(
    rows=lambda found: [{"part": part, **about} for part, about in found["parts"].items()],
    columns={
        "Part": lambda row: row["part"].replace("-", ", "),
        "Commit": lambda row: row["commit"][:7],
        "Date": lambda row: row["date"],
    },
    title="When each part was measured",
)
"""Commit and date of each part, where parts are measured one at a time."""
