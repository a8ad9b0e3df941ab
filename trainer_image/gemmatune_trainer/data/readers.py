"""Reads files of rows: jsonl, json, csv, tsv (all also with .gz) and parquet, with bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from gemmatune_trainer.data import jsonlist
from gemmatune_trainer.data.rows import Row, described
from gemmatune_trainer.errors import DataInvalid

_PARQUET_BATCH = 256
_PARQUET_BUFFER = 1 << 20
"""Bytes of a column that are read at once; without it a whole row group is, however large."""
_SAVE_AS_UTF8 = "Save the file as UTF-8."
csv.field_size_limit(sys.maxsize)

Opener = Callable[[], BinaryIO]
"""Opens a file to read bytes from; remote ones fetch only what is read."""
Reader = Callable[[Opener, str], Iterator[Row]]


def read(source: Path | Opener, label: str) -> Iterator[Row]:
    """The rows of one file; `label` is its name for people, whose ending decides the format.

    Raises:
        DataInvalid: the ending is unknown, the file is empty or damaged, or a row is no object; names the line.
    """
    reader = reader_of(label)
    if reader is None:
        raise DataInvalid(f"{label}: no format is known by this ending", f"Use {SUPPORTED}.")
    opener = (lambda: source.open("rb")) if isinstance(source, Path) else source
    with opener() as file:
        if not file.read(1):
            raise DataInvalid(f"{label} is empty", "Correct spec.dataset.uri, or fill the file.")
    try:
        yield from reader(opener, label)
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{label} is no UTF-8: {error.reason} at byte {error.start}", _SAVE_AS_UTF8) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataInvalid(f"{label} is no whole gzip file: {error}", "Compress the file anew.") from error


def reader_of(name: str) -> Reader | None:
    """The reader of a file name's ending; None where the ending is unknown."""
    ending = name.lower()
    packed = ending.endswith(".gz")
    reader = next((reader for suffix, reader in _READERS.items() if ending.removesuffix(".gz").endswith(suffix)), None)
    return None if packed and reader is _parquet else reader


@contextmanager
def _open(opener: Opener, label: str) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where the label says so: a downloaded file may lie under another name."""
    with opener() as file:
        if label.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield file


def _json_lines(opener: Opener, label: str) -> Iterator[Row]:
    with _open(opener, label) as file:
        for number, line in enumerate(file, start=1):
            where = f"{label} line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataInvalid(
                    f"{where} is no UTF-8: {error.reason} at byte {error.start}", _SAVE_AS_UTF8
                ) from error
            if text:
                yield _object(_parse(text, where), where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataInvalid(
            f"{where} is no JSON: {error.msg} at character {error.colno}, found {described(text)}",
            "Write one JSON object a line.",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise DataInvalid(f"{where} cannot be read: {error}", "Correct the line.") from error


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataInvalid(f"{where}: expected an object, found {described(value)}", "Write every row as an object.")
    return Row(value, where)


def _json(opener: Opener, label: str) -> Iterator[Row]:
    """A list of objects, or else one object a line, which many .json files are."""
    if _first_byte(opener, label) != b"[":
        yield from _json_lines(opener, label)
        return
    with _open(opener, label) as file:
        try:
            for number, value in enumerate(jsonlist.items(file), start=1):
                yield _object(value, f"{label} item {number}")
        except jsonlist.NotAList as error:
            raise DataInvalid(
                f"{label} is no JSON: {error}", "Write a list of objects, or one object a line (.jsonl)."
            ) from error


def _first_byte(opener: Opener, label: str) -> bytes:
    """The first byte that is not white space."""
    with _open(opener, label) as file:
        for line in file:
            if text := line.removeprefix(b"\xef\xbb\xbf").strip():
                return text[:1]
    return b""


def _comma_separated(opener: Opener, label: str) -> Iterator[Row]:
    yield from _separated(opener, label, ",")


def _tab_separated(opener: Opener, label: str) -> Iterator[Row]:
    yield from _separated(opener, label, "\t")


def _separated(opener: Opener, label: str, delimiter: str) -> Iterator[Row]:
    with _open(opener, label) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] = []
        line = 1
        try:
            for cells in reader:
                begin, line = line, reader.line_num + 1
                where = f"{label} line {begin}"
                if not cells:
                    continue
                if not header:
                    header = _header(cells, where)
                elif len(cells) != len(header):
                    raise DataInvalid(
                        f"{where}: expected {len(header)} cells as in the header, found {len(cells)}",
                        "Put quotes around cells that hold the separator or a line break.",
                    )
                else:
                    yield Row(dict(zip(header, cells, strict=True)), where)
        except csv.Error as error:
            raise DataInvalid(f"{label} line {line} is no CSV: {error}", "Correct the quotes of this row.") from error


def _header(cells: list[str], where: str) -> list[str]:
    doubled = next((name for name in cells if cells.count(name) > 1), None)
    if doubled is not None:
        raise DataInvalid(f"{where}: the header names the column {doubled!r} twice", "Rename one of them.")
    return cells


def _parquet(opener: Opener, label: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with opener() as source, pyarrow.parquet.ParquetFile(source, buffer_size=_PARQUET_BUFFER) as file:
            number = 0
            for group in range(file.num_row_groups):  # asked for all of them, it reads ahead
                for batch in file.iter_batches(batch_size=_PARQUET_BATCH, row_groups=[group]):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(values, f"{label} row {number}")
    except pyarrow.ArrowException as error:
        raise DataInvalid(f"{label} is no Parquet file that can be read: {error}", "Write the file anew.") from error


_READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".parquet": _parquet,
}
SUPPORTED = ".jsonl, .json, .csv, .tsv (each also with .gz) or .parquet"
