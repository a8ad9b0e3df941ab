"""A site's copies of hub models in a bucket (`defaults.modelCache`): preparations make them, trainers read them.

PREFIX/hf/ORG/NAME/COMMIT/ has a model's files, and last their manifest: a copy without one does not exist. Whoever may
write to the prefix could put other weights there, so that what is read is held against what the hub says of each file,
and against the manifest alone only where the hub does not answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gemmatune_trainer import hubs
from gemmatune_trainer.hubs import HubFile
from gemmatune_trainer.logs import log
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, StoredObject, crc32c, open_storage
from gemmatune_trainer.stored import Shape, Unreadable, shortened

MANIFEST = "manifest.json"
PATIENCE_SECONDS = 20.0
"""How long a bucket that does not answer is asked again: without it the hub serves as well."""
LARGEST_FILE = 8 * 10**9
"""Largest file that a preparation copies, in bytes: it has to lie on its disk. Published ones have 5 GB."""
_VERSION = 1
_CHUNK_BYTES = 1 << 20
Download = Callable[[str, Path], Path]
"""Writes a file of the hub, by its name, into a folder; where it lies then."""


class Unusable(Exception):
    """A copy that is not there, not whole, or not what the hub has; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """A file of a copy, as the manifest has it."""

    name: str
    size: int
    sha256: str
    crc32c: str

    def fits(self, found: StoredObject | None) -> bool:
        """Whether the object of a listing is this file; a storage that knows no checksum is believed."""
        return found is not None and found.size == self.size and found.crc32c in ("", self.crc32c)


class _Manifest(Shape):
    version: int
    files: list[CopiedFile]


class Copy:
    """The copy of one model at one revision, below the site's prefix; `place` is `hf/ORG/NAME/COMMIT`."""

    def __init__(self, prefix: str, place: str) -> None:
        if any(part in ("", ".", "..") for part in place.split("/")):
            raise Unusable(f"{place} is no path below a prefix")
        self._storage = open_storage(f"{prefix.rstrip('/')}/{place}", PATIENCE_SECONDS)
        self.uri = self._storage.uri

    def read(self, folder: Path, hub: Sequence[HubFile] | None) -> None:
        """Downloads the copy into `folder`, and verifies every byte; `hub` is None where the hub does not answer.

        Raises:
            Unusable: there is none, or something about it is wrong.
        """
        files = self._manifest()
        if hub is not None and files.keys() != {file.name for file in hub}:
            raise Unusable(f"{MANIFEST} does not name the files that the hub has")
        try:
            self._storage.download({name: folder / name for name in files})
        except ObjectMissing as error:
            raise Unusable(f"{error} is missing") from error
        digests = {file.name: file.digest for file in hub or () if file.digest}
        for name, file in files.items():
            expected = digests.get(name) or f"sha256:{file.sha256}"
            if (found := digest_of(folder / name, expected.partition(":")[0])) != expected:
                source = "the hub" if name in digests else MANIFEST
                raise Unusable(f"{name} has {found}, {source} says {expected}")

    def fill(self, hub: Sequence[HubFile], download: Download, scratch: Path) -> Sequence[CopiedFile]:
        """Makes the copy where it is not there as the hub has it; the files that were copied.

        One file after the other lies in `scratch`. Two that fill the same copy do not disturb each other: they write
        the same bytes, and the manifest lands once.

        Raises:
            Unusable: a file is too large, or does not arrive as the hub says or as it was sent.
        """
        if self._is_whole(hub):
            return []
        if large := [file.name for file in hub if file.size > LARGEST_FILE]:
            raise Unusable(f"{large[0]} is larger than {LARGEST_FILE / 1e9:.0f} GB, which a preparation does not copy")
        self._storage.delete([MANIFEST])
        copied = [self._copied(file, download, scratch) for file in hub]
        there = {item.name: item for item in self._storage.list()}
        for file in copied:
            if not file.fits(there.get(file.name)):
                raise Unusable(f"{file.name} did not arrive as it was sent")
        text = json.dumps({"version": _VERSION, "files": [asdict(file) for file in copied]}, indent=2)
        try:
            self._storage.write(MANIFEST, text.encode(), if_generation_match=0)
        except PreconditionFailed:
            log.info("another preparation has made the same copy", copy=self.uri)
        return copied

    def _copied(self, file: HubFile, download: Download, scratch: Path) -> CopiedFile:
        path = download(file.name, scratch)
        try:
            sha256 = digest_of(path, "sha256")
            if file.digest and file.digest not in (sha256, digest_of(path, file.digest.partition(":")[0])):
                raise Unusable(f"{file.name} came from the hub with {sha256}, which says {file.digest}")
            self._storage.upload({file.name: path})
            return CopiedFile(file.name, path.stat().st_size, sha256.removeprefix("sha256:"), crc32c(path))
        finally:
            path.unlink(missing_ok=True)

    def _is_whole(self, hub: Sequence[HubFile]) -> bool:
        """Whether the copy is there as the hub has it, by what listings and manifest say."""
        try:
            files = self._manifest()
        except Unusable:
            return False
        there = {item.name: item for item in self._storage.list()}
        return files.keys() == {file.name for file in hub} and all(
            files[file.name].fits(there.get(file.name))
            and files[file.name].size == file.size
            and (not file.digest.startswith("sha256:") or file.digest == f"sha256:{files[file.name].sha256}")
            for file in hub
        )

    def _manifest(self) -> Mapping[str, CopiedFile]:
        try:
            found = _Manifest.of(self._storage.read(MANIFEST))
        except ObjectMissing as error:
            raise Unusable("there is none yet") from error
        except Unreadable as error:
            raise Unusable(f"{MANIFEST} cannot be read: {error}") from error
        if found.version != _VERSION:
            raise Unusable(f"{MANIFEST} has version {found.version}, this trainer reads {_VERSION}")
        if odd := [file.name for file in found.files if not hubs.wanted(file.name)]:
            raise Unusable(f"{MANIFEST} names {shortened(repr(odd[0]))}, which is no file of a model")
        return {file.name: file for file in found.files}


def digest_of(path: Path, kind: str) -> str:
    """The digest of a file, `sha256:…`, or `git:…`: that of git's blob."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if kind == "git" else hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"
