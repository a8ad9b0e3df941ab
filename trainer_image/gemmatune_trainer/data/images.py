"""Images of the data: found beside its files, read and resized once by prepare, and kept in one file of the output."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemmatune_trainer.data.pattern import WILDCARDS, Pattern
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import DataInvalid, TrainerError
from gemmatune_trainer.storage import ObjectMissing, Storage, open_storage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_URI_SCHEMES = ("gs://", "file://")
_SCHEMA = pa.schema([("png", pa.binary())])
Pixels = npt.NDArray[np.uint8]


class ImageStore:
    """The images of one preparation, each of them once, resized to the model's `size`; they lie in `folder`."""

    def __init__(self, uri: str, size: int, folder: Path) -> None:
        self._uri = uri
        self._size = size
        self._folder = folder
        self._places: dict[str, int] = {}
        self._storages: dict[str, Storage] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row, column: str) -> str:
        """The digest of the image in a row's column.

        Raises:
            DataInvalid: the column is missing, or the image cannot be read; names the row.
        """
        value = row.value(column)
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):  # as datasets stores images
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            data, named = value, "the bytes"
        elif isinstance(value, str) and value:
            data, named = self._read(row, column, value), value
        else:
            raise row.wrong(column, "the path of an image, or its bytes", value)
        try:
            png = resized(data, self._size)
        except ValueError as error:
            raise DataInvalid(
                f"{row.where}, column {column!r}: {named} is no image that can be read: {error}",
                f"Save it as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or remove the row.",
            ) from error
        digest = hashlib.sha256(png).hexdigest()[:32]
        if digest not in self._places:
            self._places[digest] = len(self._places)
            (self._folder / digest).write_bytes(png)
        return digest

    def place(self, digest: str) -> int:
        """The number of an image in the file that `write` makes."""
        return self._places[digest]

    def write(self, path: Path) -> None:
        """Writes all images into one Arrow file."""
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for digest in self._places:
                data = (self._folder / digest).read_bytes()
                writer.write_batch(pa.record_batch([pa.array([data], pa.binary())], schema=_SCHEMA))

    def _read(self, row: Row, column: str, value: str) -> bytes:
        uri = value if value.startswith(_URI_SCHEMES) else f"{folder_of(self._uri, row.where)}/{value}"
        try:
            return read(uri, self._storages)
        except (ObjectMissing, OSError, ValueError) as error:
            raise DataInvalid(
                f"{row.where}, column {column!r}: there is no image {uri}",
                "Write the path as it is from the folder of the data's file, or correct the column.",
            ) from error
        except TrainerError as error:
            error.message = f"{row.where}, column {column!r}: {error.message}"
            raise


def read(uri: str, storages: dict[str, Storage] | None = None) -> bytes:
    """The bytes of a file:// or gs:// URI. Raises ObjectMissing."""
    known = storages if storages is not None else {}
    folder, _, name = uri.rpartition("/")
    if folder not in known:
        known[folder] = open_storage(folder)
    return known[folder].read(name)


def folder_of(uri: str, where: str) -> str:
    """The URI of the folder that holds the file of a row; `where` is its place (`part/a.jsonl line 7`)."""
    label = " ".join(where.split(" ")[:-2])
    scheme, _, path = uri.partition("://")
    inside = str(PurePosixPath(label).parent)
    if WILDCARDS.search(path):
        base = Pattern.of(path).base.rstrip("/")
    elif path.rstrip("/").rpartition("/")[2] == label:
        base = path.rpartition("/")[0]
    else:
        base = path.rstrip("/")
    return f"{scheme}://{base}" + ("" if inside == "." else f"/{inside}")


def resized(data: bytes, size: int) -> bytes:
    """An image as PNG in RGB of size x size pixels, as PaliGemma's processor resizes it.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            found = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        text = "no image format is recognised" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(text) from error
    buffer = io.BytesIO()
    found.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(png: bytes) -> Pixels:
    """The image as [height, width, 3]."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"), np.uint8)


class Images:
    """The images of prepared rows, memory-mapped."""

    def __init__(self, path: Path) -> None:
        reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
        self._reader = reader

    def png(self, place: int) -> bytes:
        """The image with a number."""
        found: bytes = self._reader.get_batch(place).column(0)[0].as_py()
        return found
