"""Checkpoints in the bucket: written beside training, trusted only with a manifest that fits, pruned afterwards."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmatune_trainer.errors import explain
from gemmatune_trainer.logs import log
from gemmatune_trainer.ownership import Fence
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, Storage, crc32c, files_below

FOLDER = "checkpoints/"
MANIFEST = "manifest.json"
_VERSION = 1
_NAME = re.compile(r"^checkpoints/step-(\d+)/")


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint that was downloaded and fits its manifest."""

    step: int
    folder: Path


def prefix_of(step: int) -> str:
    """`checkpoints/step-00000100`."""
    return f"{FOLDER}step-{step:08d}"


class Checkpoints:
    """The checkpoints of one run, as one attempt sees them.

    `scratch` is a local folder of the attempt's own; `identity` (resumeHash, dataHash, attempt, versions) goes into the
    manifests; `saved(step, uri)` is called, in the uploading thread, once a manifest has landed.
    """

    def __init__(
        self,
        storage: Storage,
        fence: Fence,
        scratch: Path,
        identity: Mapping[str, Any],
        keep: int,
        saved: Callable[[int, str], None],
    ) -> None:
        self._storage = storage
        self._fence = fence
        self._scratch = scratch
        self._identity = dict(identity)
        self._keep = keep
        self._saved = saved
        self._upload: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last_step: int | None = None
        """Step of the newest checkpoint of this attempt whose manifest has landed."""

    def newest(self) -> Restored | None:
        """The newest checkpoint of this run that is whole, downloaded; damaged ones are passed over with a warning."""
        sizes = {item.name: item.size for item in self._storage.list(FOLDER)}
        steps = sorted((_step(name) for name in sizes if name.endswith(f"/{MANIFEST}")), reverse=True)
        for step in steps:
            folder = self._scratch / f"restored-{step}"
            try:
                fault = self._fetch(step, sizes, folder)
            except ObjectMissing as error:
                fault = f"{error} is missing"
            if not fault:
                return Restored(step, folder)
            log.warning("checkpoint passed over", step=step, fault=fault)
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def _fetch(self, step: int, sizes: Mapping[str, int], folder: Path) -> str:
        """Downloads a checkpoint; what is wrong with it, "" where nothing is."""
        prefix = prefix_of(step)
        try:
            manifest = json.loads(self._storage.read(f"{prefix}/{MANIFEST}"))
            files = {str(item["name"]): item for item in manifest["files"]}
            expected = {key: manifest[key] for key in ("resumeHash", "dataHash")}
        except (ValueError, KeyError, TypeError):
            return "its manifest cannot be read"
        for key, value in expected.items():
            if value != self._identity[key]:
                return f"its {key} is {value}, this run's is {self._identity[key]}"
        for name, item in files.items():
            if sizes.get(f"{prefix}/{name}") != item["size"]:
                return f"{name} has {sizes.get(f'{prefix}/{name}')} bytes, the manifest says {item['size']}"
        self._storage.download({f"{prefix}/{name}": folder / name for name in files})
        for name, item in files.items():
            if (found := crc32c(folder / name)) != item["crc32c"]:
                return f"{name} has CRC32C {found}, the manifest says {item['crc32c']}"
        return ""

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a local folder, and uploads it in the background.

        Waits first for an upload that is still in flight, so that a kill loses at most two intervals.

        Raises:
            TrainerError: the upload before this one failed.
        """
        self.wait()
        folder = self._scratch / f"save-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        self._upload = threading.Thread(target=self._run_upload, args=(step, folder), name="checkpoint", daemon=True)
        self._upload.start()

    def wait(self) -> None:
        """Waits for the upload in flight. Raises what it failed with."""
        if self._upload is not None:
            self._upload.join()
            self._upload = None
        self.poll()

    def poll(self) -> None:
        """Raises what an upload failed with, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run_upload(self, step: int, folder: Path) -> None:
        try:
            self._put(step, folder)
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
            self._error = explain(error) or error

    def _put(self, step: int, folder: Path) -> None:
        started = time.monotonic()
        prefix = prefix_of(step)
        self._fence.check()
        # What lies there is damaged or was never finished: this step would otherwise have been resumed from.
        self._storage.delete(_manifest_first([item.name for item in self._storage.list(f"{prefix}/")]))
        files = files_below(folder, prefix)
        manifest = {
            "version": _VERSION,
            "step": step,
            **self._identity,
            "files": [
                {"name": name.removeprefix(f"{prefix}/"), "size": path.stat().st_size, "crc32c": crc32c(path)}
                for name, path in files.items()
            ],
        }
        self._storage.upload(files)
        self._fence.check()
        try:
            text = json.dumps(manifest, indent=2).encode()
            self._storage.write(f"{prefix}/{MANIFEST}", text, if_generation_match=0)
        except PreconditionFailed:
            self._fence.check()
            log.warning("another process has written the manifest of this checkpoint", step=step)
        shutil.rmtree(folder, ignore_errors=True)
        self.last_step = step
        log.info("checkpoint saved", step=step, seconds=round(time.monotonic() - started, 2))
        self._saved(step, self._storage.locate(prefix))
        self._prune(step)

    def _prune(self, newest: int) -> None:
        """Deletes older checkpoints beyond `keep`, and what interrupted uploads have left."""
        names = [item.name for item in self._storage.list(FOLDER)]
        whole = sorted({_step(name) for name in names if name.endswith(f"/{MANIFEST}")} | {newest}, reverse=True)
        kept = {step for step in whole if step > newest} | set([step for step in whole if step <= newest][: self._keep])
        doomed = [name for name in names if 0 <= (step := _step(name)) < newest and step not in kept]
        self._storage.delete(_manifest_first(doomed))


def _step(name: str) -> int:
    """Step of a checkpoint's object; -1 for an object that is none."""
    match = _NAME.match(name)
    return int(match.group(1)) if match else -1


def _manifest_first(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: not name.endswith(f"/{MANIFEST}"))
