"""Runs an image as a restricted pod would: read-only root, its own user, no capability, by runc alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.wait import wait_for
from tools import debian, images, oci


class ImageBox:
    """An image unpacked for the length of a context."""

    def __init__(self, archive: Path) -> None:
        self.image = oci.Archive(archive)
        self._runc = str(debian.ensure("node", images.NODE, whole=False) / "usr/sbin/runc")
        self._folder = Path(tempfile.mkdtemp(prefix="gftb-"))
        self._root = self._folder / "rootfs"
        self._root.mkdir()
        try:
            self._unpack(archive)
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def run(
        self,
        *command: str,
        variables: Mapping[str, str] | None = None,
        data: Path | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """A command in the image, with its environment and user; without one, what the image starts.

        `/tmp` and `/cache` are the only places to write, and `/data`: the folder `data` where there is one.
        """
        self._configure(command, variables or {}, data)
        return subprocess.run(
            [self._runc, "run", "--bundle", str(self._folder), self._folder.name],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def stop_after(
        self, said: str, *command: str, variables: Mapping[str, str] | None = None, data: Path | None = None
    ) -> tuple[int, str]:
        """Sends SIGTERM to the container's first process once it has written `said`: its exit code, what it wrote."""
        self._configure(command, variables or {}, data)
        log = self._folder / "log"
        with log.open("wb") as output:
            start = [self._runc, "run", "--bundle", str(self._folder), self._folder.name]
            process = subprocess.Popen(start, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(
                lambda: said in log.read_text() or process.poll() is not None, said, seconds=300, detail=log.read_text
            )
            subprocess.run([self._runc, "kill", self._folder.name, "TERM"], check=False, capture_output=True)
            code = process.wait(30)
        finally:
            subprocess.run([self._runc, "delete", "--force", self._folder.name], check=False, capture_output=True)
            process.wait(30)
        return code, log.read_text()

    def __enter__(self) -> ImageBox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _unpack(self, archive: Path) -> None:
        with tarfile.open(archive) as content:
            for layer in self.image.manifest["layers"]:
                packed = content.extractfile(f"blobs/{layer['digest'].replace(':', '/')}")
                assert packed is not None
                command = ["tar", "-x", *(["-z"] if layer["mediaType"].endswith("gzip") else []), "-C", str(self._root)]
                with packed, subprocess.Popen(command, stdin=subprocess.PIPE) as unpacking:
                    assert unpacking.stdin is not None
                    shutil.copyfileobj(packed, unpacking.stdin, 1 << 20)
                assert unpacking.returncode == 0, layer

    def _configure(self, command: Sequence[str], variables: Mapping[str, str], data: Path | None) -> None:
        user, group = (int(part) for part in self.image.config["User"].split(":"))
        environment = [*self.image.config["Env"], *(f"{key}={value}" for key, value in variables.items())]
        kinds = ["pid", "ipc", "uts", "mount", "network"]
        tmp = {"type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777", "size=64m"]}
        bound = [{"destination": "/data", "type": "bind", "source": str(data), "options": ["bind", "nosuid", "nodev"]}]
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": user, "gid": group},
                "args": list(command) or self.image.config["Entrypoint"],
                "env": environment,
                "cwd": "/",
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs", "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", **tmp},
                {"destination": "/cache", **tmp},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/shm", **tmp},
                *(bound if data is not None else []),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in kinds], "rootfsPropagation": "private"},
        }
        (self._folder / "config.json").write_text(json.dumps(config))
