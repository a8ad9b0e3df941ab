"""Debian packages as folders: fetched by apt-get into the user's cache directory, without installing anything.

What the base image and the real node are made of. The machine's own sources and keys are used, its state is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.kube import BuildError, cache_dir, locked, timed

MERGED = ("bin", "lib", "lib64", "sbin")
"""What Debian keeps below /usr, with a link in its place."""
PROGRAMS = ("apt-get", "dpkg-deb", "tar")


def folder(kind: str, packages: Sequence[str]) -> Path:
    """Where these packages lie unpacked, there or not."""
    digest = hashlib.sha256(f"{kind} {' '.join(packages)}".encode()).hexdigest()[:12]
    return cache_dir() / "debian" / f"{kind}-{digest}"


def ensure(kind: str, packages: Sequence[str], *, whole: bool) -> Path:
    """The folder of these packages, made where it is missing; `whole` adds all that they depend on.

    Errors: BuildError with what is missing or what apt-get said.
    """
    target = folder(kind, packages)
    with locked(cache_dir() / "debian" / "lock"):
        if target.is_dir():
            return target
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise BuildError(f"{', '.join(missing)}: not here; {kind} is made of packages of Debian or Ubuntu")
        with timed(f"fetching {kind}"), tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
            archives = _fetch(Path(scratch), packages, whole=whole)
            root = Path(scratch) / "root"
            _unpack(archives, root)
            root.rename(target)
    return target


def _fetch(scratch: Path, packages: Sequence[str], *, whole: bool) -> list[Path]:
    """The packages' files. With an empty state apt takes nothing for installed, so that it fetches every dependency."""
    state, cache = scratch / "state", scratch / "cache"
    for path in (state / "lists/partial", cache / "archives/partial"):
        path.mkdir(parents=True)
    (state / "status").touch()
    options = [f"-oDir::State={state}", f"-oDir::State::status={state / 'status'}", f"-oDir::Cache={cache}"]
    options += ["-oAPT::Sandbox::User=", "-oDebug::NoLocking=1", "-oAcquire::Languages=none", "-qq"]
    _run(["apt-get", *options, "update"])
    if whole:
        _run(["apt-get", *options, "-y", "--no-install-recommends", "--download-only", "install", *packages])
        return sorted((cache / "archives").glob("*.deb"))
    _run(["apt-get", *options, "download", *packages], cache)
    return sorted(cache.glob("*.deb"))


def _unpack(archives: Sequence[Path], root: Path) -> None:
    """Files only: no package's script runs."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for archive in archives:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as source:
            command = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", f"--directory={root}"]
            done = subprocess.run(command, stdin=source.stdout, capture_output=True, text=True, check=False)
        if done.returncode or source.returncode:
            raise BuildError(f"{archive.name} could not be unpacked: {done.stderr.strip()}")
        with contextlib.suppress(FileNotFoundError):
            archive.unlink()


def _run(command: list[str], where: Path | None = None) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stderr or done.stdout).strip()}")
