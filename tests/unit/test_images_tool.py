"""tools/images.py keeps to the disk that there is, and leaves nothing of a build that failed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import builds
from tools import images
from tools.kube import BuildError

GB = 10**9
FAILS = """#!/bin/sh
case "$*" in *prune*) echo pruned >> "$0.log"; exit 0;; esac
for word; do case "$word" in --output=*) dest="${word#*dest=}"; echo half > "${dest%%,*}";; esac; done
echo "no space left on device" >&2
exit 1
"""


@pytest.fixture
def buildctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BuildKit's client, every build of which ends half way."""
    program = tmp_path / "buildctl"
    program.write_text(FAILS)
    program.chmod(0o755)
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(images, "_program", lambda name: program)
    monkeypatch.setattr(images, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(images, "base_layout", lambda kind: (tmp_path, "sha256:0"))
    return program


def disk(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """How much is free at each look; the last for ever."""
    left = list(free)

    def usage(folder: Path) -> Any:
        return SimpleNamespace(free=left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(images.shutil, "disk_usage", usage)


def pruned(buildctl: Path) -> bool:
    return buildctl.with_name("buildctl.log").exists()


def test_with_room_the_cache_stays(buildctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 5 * GB)
    images.make_room(buildctl, 5 * GB)
    assert not pruned(buildctl)


def test_the_cache_is_emptied_where_the_disk_is_short(buildctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 5 * GB, 5 * GB, 9 * GB)
    images.make_room(buildctl, 8 * GB)
    assert pruned(buildctl)


def test_a_disk_that_stays_short(buildctl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before minutes are spent, and before other programs find the disk full."""
    disk(monkeypatch, 5 * GB)
    with pytest.raises(images.RoomError) as told:
        images.build(buildctl, "keras")
    assert str(told.value) == (
        f"{tmp_path}: 5 GB of disk are free, 8 GB are needed; "
        "make room there, or name a folder on a larger disk by XDG_CACHE_HOME"
    )


def test_half_an_archive_is_not_left(buildctl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 100 * GB)
    (tmp_path / "images/keras.tar").write_text("whole")
    with pytest.raises(BuildError, match="keras:latest was not built:\nno space left on device"):
        images.build(buildctl, "keras")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["keras.tar"]


@pytest.fixture
def builds_well(buildctl: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BuildKit's client, every build of which writes an archive."""
    buildctl.write_text(FAILS.replace("exit 1", "exit 0"))
    monkeypatch.setattr(images, "why_not_buildkit", lambda: "")
    monkeypatch.setattr(images, "buildkit", lambda: contextlib.nullcontext(buildctl))
    monkeypatch.setattr(builds, "cache_dir", lambda: images.archive_of("keras").parent.parent)
    return buildctl


def test_each_test_has_an_archive_of_its_own(
    builds_well: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make image` left stays, and of what tests build nothing does."""
    disk(monkeypatch, 100 * GB)
    (tmp_path / "images/keras.tar").write_text("of make image")
    with builds.built("keras") as one, builds.built("keras") as other:
        assert one != other
        assert (one.read_text(), other.read_text()) == ("half\n", "half\n")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["keras.tar"]
    assert (tmp_path / "images/keras.tar").read_text() == "of make image"


@pytest.mark.parametrize("free", [(5 * GB,), (9 * GB, 0, 0)], ids=["for the build", "for what becomes of it"])
@pytest.mark.parametrize("soak", [False, True])
def test_a_test_without_room_is_skipped(
    free: tuple[int, ...], soak: bool, builds_well: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But no soak goes on without."""
    disk(monkeypatch, *free)
    monkeypatch.setattr(builds, "SOAK", soak)
    told = images.RoomError if soak else pytest.skip.Exception
    with pytest.raises(told, match="GB of disk are free"), builds.built("keras"):
        pass
    assert list((tmp_path / "images").iterdir()) == []
