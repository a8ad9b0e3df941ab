"""The images that tests need, built from the tree as it is; BuildKit's cache has them built once for all tests."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.soak import SOAK
from tools import images
from tools.kube import cache_dir


@contextlib.contextmanager
def built(name: str, copies: int = 1) -> Iterator[Path]:
    """An image's archive, for the length of the context; the disk has room for that many copies of it beside.

    An archive of its own: tests of other processes may need the same image now, and `make image` may have left one.
    Where this machine cannot build, or has not the room, the test is skipped and says why; a soak fails without room.
    """
    if reason := images.why_not_buildkit():
        pytest.skip(reason)
    folder = cache_dir() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="test-", dir=folder) as own:
        archive = Path(own) / f"{name}.tar"
        try:
            with images.buildkit() as socket:
                images.build(socket, name, archive)
                _make_room(socket, copies * archive.stat().st_size)
        except images.RoomError as error:
            if SOAK:
                raise
            pytest.skip(str(error))
        yield archive


def _make_room(socket: Path, wanted: int) -> None:
    """Room where images are unpacked, which may be another disk than the cache's."""
    target = Path(tempfile.gettempdir())
    if target.stat().st_dev == cache_dir().stat().st_dev:
        images.make_room(socket, wanted)
    elif (free := shutil.disk_usage(target).free) < wanted:
        raise images.RoomError(
            f"{target}: {free / 1e9:.0f} GB of disk are free, {wanted / 1e9:.0f} GB are needed; "
            "make room there, or name a folder on a larger disk by TMPDIR"
        )
