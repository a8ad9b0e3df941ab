"""A row of the data as it was read, with the words that tell a person where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemmatune_trainer.errors import DataInvalid

_SHOWN_CHARACTERS = 80
_SHOWN_COLUMNS = 20
_UNSEPARATED = "The header is one cell: separate the cells of a .csv file by commas, those of a .tsv file by tabs."


@dataclass(frozen=True, slots=True)
class Row:
    """One row: values by column, and its place (`quotes.jsonl line 7`)."""

    values: Mapping[str, Any]
    where: str
    folder: str = ""
    """Path or gs:// URI of the folder of its file, which images are named relative to; "" of rows of a hub."""

    def value(self, column: str) -> Any:
        """The value of a column.

        Raises:
            DataInvalid: there is no such column; the message lists those that there are.
        """
        if column not in self.values:
            raise DataInvalid(
                f"{self.where}: there is no column {column!r}; the columns are {columns_text(self.values)}",
                _UNSEPARATED
                if _unseparated(self.values)
                else "Correct the column's name in spec.dataset, or the data.",
            )
        return self.values[column]

    def wrong(self, column: str, expected: str, value: object, remedy: str = "Correct the row.") -> DataInvalid:
        """The error of a value that is not what it should be."""
        return DataInvalid(f"{self.where}, column {column!r}: expected {expected}, found {described(value)}", remedy)


def _unseparated(values: Mapping[str, Any]) -> bool:
    """Whether the only column has a name that looks like several."""
    return len(values) == 1 and any(sign in name for name in values for sign in ",;\t|")


def columns_text(values: Mapping[str, Any]) -> str:
    """The names of a row's columns, as a list for people."""
    names = [repr(name) for name in values]
    more = len(names) - _SHOWN_COLUMNS
    return (", ".join(names[:_SHOWN_COLUMNS]) + (f" and {more} more" if more > 0 else "")) or "none"


def described(value: object) -> str:
    """Kind and beginning of a value: `number 7`, `text 'abc'`, `nothing`."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "truth value"),
        ((int, float), "number"),
        (str, "text"),
        (Mapping, "object"),
        ((list, tuple), "list"),
        (bytes, "bytes"),
    )
    if value is None:
        return "nothing (null)"
    kind = next((name for types, name in kinds if isinstance(value, types)), type(value).__name__)
    text = repr(value)
    return f"{kind} {text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + '…'}"
