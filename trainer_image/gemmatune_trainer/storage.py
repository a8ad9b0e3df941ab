"""Where a run keeps what it writes: one small interface over Cloud Storage (gs://) and directories (file://)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_trainer.errors import InvalidConfig

_CHUNK_BYTES = 1 << 20
PATIENCE_SECONDS = 120.0
"""How long a bucket that does not answer is asked again."""


class ObjectMissing(LookupError):
    """No object of this name exists; the argument is its URI."""


class PreconditionFailed(Exception):
    """The object exists already, or is not the generation that was asked for; the argument is its URI."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing: `name` relative to the storage's prefix, `size` in bytes.

    `crc32c` is that of its content as `crc32c` gives it, "" where the storage does not know it.
    """

    name: str
    size: int
    generation: int
    crc32c: str = ""


class Storage(Protocol):
    """Objects under one prefix. Names are relative to it, with `/` between their parts.

    Every method raises StorageUnavailable where the storage does not answer also after retries, AccessDenied where it
    refuses, DiskFull where a file system is full.
    """

    uri: str
    """The prefix, without a trailing slash."""

    def read(self, name: str) -> bytes:
        """The object's content. Raises ObjectMissing."""

    def read_generation(self, name: str) -> tuple[bytes, int]:
        """The object's content and the generation that `write` matches. Raises ObjectMissing."""

    def read_part(self, item: StoredObject, begin: int, end: int) -> bytes:
        """The bytes of an object from `begin` up to `end`. Raises ObjectMissing, also where it has changed since."""

    def write(self, name: str, data: bytes, if_generation_match: int | None = None) -> int:
        """Writes the object as a whole; its new generation.

        With `if_generation_match` only over that generation, 0 standing for "does not exist": else PreconditionFailed
        is raised and nothing is written. A write that had to be repeated counts as done where the object holds exactly
        `data`: whoever claims a name puts something of its own into the content.
        """

    def list(self, prefix: str = "") -> Sequence[StoredObject]:
        """The objects whose names begin with `prefix`, by name; those with a part that begins with a dot left out."""

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects; those that do not exist are passed over."""

    def delete_found(self, items: Sequence[StoredObject]) -> None:
        """Deletes objects of a listing, in this order; what has been written anew since is passed over."""

    def upload(self, files: Mapping[str, Path], new: bool = False) -> None:
        """Writes local files as objects (name -> file), several at a time.

        With `new` only under names that hold nothing: else PreconditionFailed is raised, and the others may be
        written. A name that holds exactly the file's bytes counts as written by this call, which may have repeated it.
        """

    def download(self, files: Mapping[str, Path]) -> None:
        """Reads objects into local files (name -> file), several at a time. Raises ObjectMissing."""

    def locate(self, name: str) -> str:
        """The object's URI."""


def open_storage(uri: str, patience: float = PATIENCE_SECONDS) -> Storage:
    """The storage of a gs:// or file:// prefix; its library is imported only here.

    The environment variable GEMMATUNE_GCS_ENDPOINT, and nothing else, leads to another endpoint than Google's.

    Raises:
        InvalidConfig: another scheme.
    """
    parts = urlsplit(uri)
    if parts.scheme == "gs" and parts.netloc:
        from gemmatune_trainer.storage_gcs import GcsStorage

        prefix = uri.removeprefix("gs://").partition("/")[2].strip("/")
        return GcsStorage(parts.netloc, prefix, os.environ.get(ENV_GCS_ENDPOINT) or None, patience)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        from gemmatune_trainer.storage_file import FileStorage

        return FileStorage(local_path(uri))
    raise InvalidConfig(f"{uri!r} is no storage", "Use gs://BUCKET/PATH or file:///PATH.")


def local_path(uri: str) -> Path:
    """The path of a file:// URI."""
    return Path(unquote(urlsplit(uri).path)).absolute()


def crc32c(path: Path) -> str:
    """CRC32C of a file, in base64 as Cloud Storage writes it."""
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode()


def generation_of(storage: Storage, name: str) -> int:
    """The generation of an object, as `write` matches it: 0 where it does not exist."""
    try:
        return storage.read_generation(name)[1]
    except ObjectMissing:
        return 0


def files_below(folder: Path, prefix: str) -> dict[str, Path]:
    """The files of a local folder by the object names they get below `prefix` (as `upload` wants them)."""
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*")) if path.is_file()
    }
