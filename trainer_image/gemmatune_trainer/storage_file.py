"""A directory as storage: whole-file writes that survive a crash, and create-once by hard link."""

from __future__ import annotations

import fcntl
import filecmp
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, StoredObject

_LOCK = "write"
_INODE_BITS = 20
_HELD: list[BinaryIO] = []
"""Locks that end with the process."""


class FileStorage:
    """Objects as files below a directory.

    A write goes to a temporary file beside its target, is synced, and takes the name in one step: by a hard link where
    the name must be new (the second of two processes fails), by a rename under the directory's lock where a certain
    generation is replaced. Names with a part that begins with a dot are the storage's own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def locate(self, name: str) -> str:
        """The object's URI."""
        return self._path(name).as_uri()

    def read(self, name: str) -> bytes:
        """The object's content. Raises ObjectMissing."""
        return self.read_generation(name)[0]

    def read_generation(self, name: str) -> tuple[bytes, int]:
        """The object's content and generation. Raises ObjectMissing."""
        try:
            with self._path(name).open("rb") as file:
                return file.read(), _generation(os.fstat(file.fileno()))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectMissing(self.locate(name)) from error

    def read_part(self, item: StoredObject, begin: int, end: int) -> bytes:
        """Some bytes of one generation of a file. Raises ObjectMissing."""
        try:
            with self._path(item.name).open("rb") as file:
                if _generation(os.fstat(file.fileno())) == item.generation:
                    file.seek(begin)
                    return file.read(end - begin)
        except FileNotFoundError:
            pass
        raise ObjectMissing(self.locate(item.name))

    def write(self, name: str, data: bytes, if_generation_match: int | None = None) -> int:
        """Writes the object as a whole; its generation. Raises PreconditionFailed."""
        target = self._path(name)
        with self._temporary(target) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            generation = _generation(temporary.stat())
            self._take_name(temporary, target, if_generation_match)
        return generation

    def _take_name(self, temporary: Path, target: Path, if_generation_match: int | None) -> None:
        if if_generation_match == 0:
            try:
                os.link(temporary, target)
            except FileExistsError as error:
                raise PreconditionFailed(target.as_uri()) from error
        elif if_generation_match is None:
            temporary.replace(target)
        else:
            with self._lock():
                try:
                    found = _generation(target.stat())
                except FileNotFoundError:
                    found = 0
                if found != if_generation_match:
                    raise PreconditionFailed(target.as_uri())
                temporary.replace(target)
        _sync_directory(target.parent)

    def list(self, prefix: str = "") -> Sequence[StoredObject]:
        """The objects whose names begin with `prefix`, by name."""
        start = self.root / prefix.rpartition("/")[0]
        found = []
        for folder, folders, names in os.walk(start):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in names:
                path = Path(folder, file)
                name = path.relative_to(self.root).as_posix()
                if file.startswith(".") or not name.startswith(prefix):
                    continue
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append(StoredObject(name, status.st_size, _generation(status)))
        return sorted(found, key=lambda item: item.name)

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects, and the directories that become empty."""
        for name in names:
            path = self._path(name)
            path.unlink(missing_ok=True)
            self._remove_empty(path)

    def _remove_empty(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self.root or not parent.is_relative_to(self.root):
                break
            with suppress(OSError):  # not empty, or gone already
                parent.rmdir()

    def delete_found(self, items: Sequence[StoredObject]) -> None:
        """Deletes files of a listing, as long as they are the generations that it had.

        A file leaves its name before it is looked at for the last time, and gets it back where it is another one: a
        lock around both could be held by a process that is frozen.
        """
        for item in items:
            path = self._path(item.name)
            aside = path.parent / f".{secrets.token_hex(8)}.tmp"
            try:
                if _generation(path.stat()) != item.generation:
                    continue
                path.rename(aside)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if _generation(aside.stat()) != item.generation:
                with suppress(FileExistsError):  # newer still: that one stays
                    os.link(aside, path)
            aside.unlink()
            self._remove_empty(path)

    def upload(self, files: Mapping[str, Path], new: bool = False) -> None:
        """Copies local files to their names. Raises PreconditionFailed where they shall be new."""
        taken = None
        for name, source in files.items():
            target = self._path(name)
            with self._temporary(target) as temporary:
                shutil.copyfile(source, temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                try:
                    self._take_name(temporary, target, 0 if new else None)
                except PreconditionFailed as error:
                    if not _same(source, target):
                        taken = error
        if taken is not None:
            raise taken

    def download(self, files: Mapping[str, Path]) -> None:
        """Copies objects to local files. Raises ObjectMissing."""
        for name, target in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(self._path(name), target)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise ObjectMissing(self.locate(name)) from error

    def share_lock(self, name: str) -> None:
        """Holds a lock of the prefix, together with whoever else holds it, until this process ends."""
        file = self._lock_file(name)
        fcntl.flock(file, fcntl.LOCK_SH)
        _HELD.append(file)

    def is_locked(self, name: str) -> bool:
        """Whether another process holds the lock."""
        with self._lock_file(name) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _lock_file(self, name: str) -> BinaryIO:
        self.root.mkdir(parents=True, exist_ok=True)
        return (self.root / f".gemmatune-{name}.lock").open("ab")

    def _path(self, name: str) -> Path:
        return self.root / name

    @contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        """A name beside the target; what is left under it afterwards is removed."""
        path = target.parent / f".{secrets.token_hex(8)}.tmp"
        while True:  # `delete` of another process may remove an empty directory in between
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                path.touch(exist_ok=False)
                break
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with self._lock_file(_LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _same(source: Path, target: Path) -> bool:
    """Whether a name holds exactly the bytes of a file."""
    try:
        return filecmp.cmp(source, target, shallow=False)
    except FileNotFoundError:
        return False


def _generation(status: os.stat_result) -> int:
    """A number that changes with every write: time of the write and inode (two files that exist at once differ)."""
    return (status.st_mtime_ns << _INODE_BITS) | (status.st_ino & ((1 << _INODE_BITS) - 1))


def _sync_directory(path: Path) -> None:
    """Makes a new name survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
