"""Images of rows: found beside the data or in a bucket, checked, and brought to the size that the model reads."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import DataInvalid, InvalidConfig
from gemmatune_trainer.storage import ObjectMissing, Storage, StoredObject, local_path, open_storage

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 64 << 20
"""Bytes of an image's file, all of which are in memory."""
MOST_PIXELS = 50_000_000
"""Pixels of an image: unpacked they take four bytes each, however small its file is."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""No other decoder of Pillow ever sees what a row brings."""
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Pillow's kinds of pixels that become RGB without a choice of brightness."""
_NOT_SATISFIABLE = 416
"""HTTP's answer to a range of an object without bytes."""
_REPAIR = "Replace the image by a JPEG, PNG or WebP file, or remove the row."

Pixels = npt.NDArray[np.uint8]


class Unreadable(ValueError):
    """No image that can be trained on; the text says what was found."""


def decode(data: bytes, size: int) -> Pixels:
    """The pixels of an image's file, [size, size, 3]: upright, RGB, resized as PaliGemma's own processor does.

    The whole picture is fitted into the square, whatever its sides; transparency is dropped, and of an animation the
    first frame is taken.

    Raises:
        Unreadable: it is damaged, too large, or of another format.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check(image)
            ImageOps.exif_transpose(image, in_place=True)
            plain = image if image.mode == "RGB" else image.convert("RGB")
            return np.asarray(plain.resize((size, size), Image.Resampling.BICUBIC), np.uint8)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"an image of more than {MOST_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"no JPEG, PNG or WebP file: {_beginning(data)}") from error
    except Exception as error:  # decoders raise what they like of damaged files
        raise Unreadable(f"a damaged image: {error}") from error


def _check(image: Image.Image) -> None:
    """What the header says, before anything is unpacked."""
    if image.width * image.height > MOST_PIXELS:
        raise Unreadable(f"an image of {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
    if image.mode not in _MODES:
        raise Unreadable(f"an image with pixels of kind {image.mode!r}, expected 8 bits of grey or colour")


def _beginning(data: bytes) -> str:
    return f"{len(data)} bytes that begin with {data[:12]!r}" if data else "an empty file"


def read_uri(uri: str) -> bytes:
    """The file of an image by its gs:// or file:// URI.

    Raises:
        Unreadable: it is not there, too large, or of another scheme.
        AccessDenied, StorageUnavailable: the bucket refuses or does not answer.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        return _read_path(local_path(uri))
    bucket, _, name = rest.partition("/")
    if scheme != "gs" or not bucket or not name:
        raise Unreadable(f"{uri!r}, which names no object")
    found = StoredObject(name, MOST_BYTES, None)  # type: ignore[arg-type]  # of whatever generation
    try:
        data = _bucket(bucket, os.environ.get(ENV_GCS_ENDPOINT, "")).read_part(found, 0, MOST_BYTES + 1)
    except ObjectMissing as error:
        raise Unreadable(f"no object {uri}") from error
    except Exception as error:
        if getattr(error, "code", None) == _NOT_SATISFIABLE:
            return b""
        raise
    return _bounded(data, uri)


@lru_cache(maxsize=8)
def _bucket(name: str, endpoint: str) -> Storage:
    """One client for all images of a bucket."""
    return open_storage(f"gs://{name}")


def _read_path(path: Path) -> bytes:
    """A file's content; no pipe or device is opened, which might never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable(f"no file but something else at {path}")
        with path.open("rb") as file:
            return _bounded(file.read(MOST_BYTES + 1), str(path))
    except OSError as error:
        raise Unreadable(f"no file that can be read at {path} ({error.strerror})") from error


def _bounded(data: bytes, where: str) -> bytes:
    if len(data) > MOST_BYTES:
        raise Unreadable(f"a file of more than {MOST_BYTES >> 20} MiB, {where}")
    return data


def reference(row: Row, column: str) -> bytes | str:
    """What the image column of a row holds: the file's bytes, or the URI under which they are.

    A path is relative to the folder of the row's file, and stays inside of it; a gs:// URI stays in the bucket of that
    file. What a row says never leads to other places that this process may read.

    Raises:
        DataInvalid: the column is missing or holds something else; names row and column.
    """
    value = row.value(column)
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():  # as `datasets` writes images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str) or not value.strip():
        raise row.wrong(column, "an image's bytes, path or gs:// URI", value, _REPAIR)
    if value.startswith("gs://"):
        if value.split("/")[:3] != row.folder.split("/")[:3]:
            raise row.wrong(
                column, "an image in the bucket of the row's file", value, "Copy image and rows into one bucket."
            )
        return value
    if "://" in value or value.startswith("/"):
        raise row.wrong(
            column, "a path relative to the file of the row, or a gs:// URI", value, "Write the path relative to it."
        )
    if not row.folder:
        raise row.wrong(column, "an image's bytes: these rows come from a hub", value, "Use rows that hold the images.")
    if ".." in PurePosixPath(value).parts or "\\" in value or "\0" in value:
        raise row.wrong(
            column,
            "a path below the folder of the row's file",
            value,
            "Write the path without .. and with /, and move the image there.",
        )
    return f"{row.folder}/{value}"


def load(place: str) -> bytes:
    """The file of an image by its URI or path, as `reference` gives it. Raises Unreadable, and what read_uri does."""
    return read_uri(place) if "://" in place else _read_path(Path(place))


def invalid(row: Row, column: str, error: Unreadable) -> DataInvalid:
    """The error of an image that cannot be trained on."""
    return DataInvalid(f"{row.where}, column {column!r}: expected an image, found {error}", _REPAIR)


def picture(uri: str, size: int, where: str) -> Any:
    """The pixels of a prompt's image; `where` is its place in the spec. Raises InvalidConfig."""
    try:
        return decode(read_uri(uri), size)
    except Unreadable as error:
        raise InvalidConfig(f"{where}: expected an image at {uri}, found {error}", "Correct the URI.") from error
