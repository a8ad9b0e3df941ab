"""Checkpoints in the bucket: written beside training, trusted only with a manifest that fits, pruned afterwards."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from gemmatune_trainer.backends.base import Snapshot
from gemmatune_trainer.backends.forms import begins_anew
from gemmatune_trainer.errors import Interrupted, StorageUnavailable, TrainerError, explain, naming
from gemmatune_trainer.logs import log
from gemmatune_trainer.ownership import Fence
from gemmatune_trainer.storage import (
    ObjectMissing,
    PreconditionFailed,
    Storage,
    StoredObject,
    crc32c,
    files_below,
    generation_of,
)
from gemmatune_trainer.stored import Shape, Unreadable, shortened, stays_below

FOLDER = "checkpoints/"
MANIFEST = "manifest.json"
_VERSION = 1
_NAME = re.compile(r"^checkpoints/step-(\d+)/")
_LOOK_SECONDS = 0.1
_NAMED = 5
"""How many checkpoints that are passed over a status names: whoever writes to the bucket can put thousands there."""
_TRIES = 3
"""How often files are sent that arrive damaged."""


class _File(Shape):
    name: str
    size: int
    crc32c: str


class _Manifest(Shape):
    version: int
    step: int
    resume_hash: str = Field(alias="resumeHash")
    data_hash: str = Field(alias="dataHash")
    files: list[_File]


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint that was downloaded and fits its manifest."""

    step: int
    folder: Path
    uri: str


def prefix_of(step: int) -> str:
    """`checkpoints/step-00000100`."""
    return f"{FOLDER}step-{step:08d}"


@dataclass
class Schedule:
    """When a checkpoint is due: at steps that no interruption shifts, or after a time."""

    every_steps: int | None
    every_seconds: int | None
    time: float

    def due(self, step: int, now: float) -> bool:
        """Whether a checkpoint of `step` is due; the time to the next one then counts from here."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        by_time = self.every_seconds is not None and now - self.time >= self.every_seconds
        if by_steps or by_time:
            self.time = now
        return by_steps or by_time


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
        self._uploads: dict[int, Future[None]] = {}
        self._lock = threading.Lock()
        self._passed_over: dict[int, str] = {}
        self.last_step: int | None = None
        """Step of the newest checkpoint of this attempt whose manifest has landed."""
        self.remark = ""
        """What is to be said of the checkpoint that is used."""
        self.blocked = 0.0
        """Seconds that training has waited for checkpoints."""

    def newest(self) -> Restored | None:
        """The newest checkpoint of this run that is whole, downloaded; damaged ones are passed over with a warning.

        The bucket is listed anew after each of them: an older attempt that still runs may have pruned what was found,
        but only after something newer has landed.
        """
        while True:
            sizes = {item.name: item.size for item in self._storage.list(FOLDER)}
            steps = {_step(name) for name in sizes if name.endswith(f"/{MANIFEST}")} - self._passed_over.keys()
            if not steps:
                return None
            step = max(steps)
            folder = self._scratch / f"restored-{step}"
            try:
                fault = self._fetch(step, sizes, folder)
            except ObjectMissing as error:
                fault = f"{error} is missing"
            if not fault:
                return Restored(step, folder, self._storage.locate(prefix_of(step)))
            log.warning("checkpoint passed over", step=step, fault=fault)
            self._passed_over[step] = fault
            shutil.rmtree(folder, ignore_errors=True)

    def newest_for(self, backend: str) -> Restored | None:
        """The same; what the backend cannot take over of another's is said in the attempt's message."""
        found = self.newest()
        self.remark = begins_anew(found.folder, backend) if found is not None else ""
        if self.remark:
            log.warning("the optimizer begins anew", why=self.remark)
        return found

    @property
    def note(self) -> str:
        """A sentence on each checkpoint that `newest` has passed over, and `remark`, for people; often ""."""
        passed = [f"The checkpoint of step {step} is not used: {why}." for step, why in self._passed_over.items()]
        if len(passed) > _NAMED:
            passed[_NAMED:] = [f"Nor are {len(passed) - _NAMED} older ones."]
        return " ".join([*passed, self.remark]).strip()

    def _fetch(self, step: int, sizes: Mapping[str, int], folder: Path) -> str:
        """Downloads a checkpoint; what is wrong with it, "" where nothing is."""
        prefix = prefix_of(step)
        try:
            manifest = _Manifest.of(self._storage.read(f"{prefix}/{MANIFEST}"))
        except Unreadable as error:
            return f"its manifest cannot be read: {error}"
        expected = {**self._identity, "version": _VERSION, "step": step}
        for key, value in manifest.model_dump(by_alias=True, exclude={"files"}).items():
            if value != expected[key]:
                return f"its {key} is {shortened(str(value))}, this run's is {expected[key]}"
        files = {file.name: file for file in manifest.files}
        if not files:
            return "its manifest names no file"
        for name, file in files.items():
            if not stays_below(name):
                return f"its manifest names {shortened(repr(name))}, which lies outside it"
            if (found := sizes.get(f"{prefix}/{name}")) != file.size:
                there = "is missing" if found is None else f"has {found} bytes"
                return f"{shortened(name)} {there}, the manifest says {shortened(str(file.size))} bytes"
        self._storage.download({f"{prefix}/{name}": folder / name for name in files})
        for name, file in files.items():
            if (computed := crc32c(folder / name)) != file.crc32c:
                return f"{name} has CRC32C {computed}, the manifest says {shortened(file.crc32c)}"
        return ""

    def save(self, step: int, take: Callable[[], Snapshot], look: Callable[[], None] = lambda: None) -> None:
        """Takes a snapshot, and lets a thread write and upload it.

        Waits first for an upload that is still in flight, so that a kill loses at most two intervals. `look` is called
        while it waits, and may raise to end the waiting.

        Raises:
            TrainerError: the upload before this one failed.
        """
        started = time.monotonic()
        self.wait(look)
        self._start(step, take(), prune=True)
        self.blocked += time.monotonic() - started

    def save_last(self, step: int, take: Callable[[], Snapshot], seconds: float) -> str:
        """Saves the step that an attempt is stopped at, beside an upload in flight, within `seconds`.

        Returns:
            Why it has not landed, "" where it has; `last_step` is the newest that has.

        Raises:
            Interrupted: a newer attempt has taken over.
        """
        begun = time.monotonic()
        if self.last_step == step:
            return ""
        upload = self._uploads.get(step)
        if upload is None or (upload.done() and upload.exception()):
            upload = self._start(step, take(), prune=False)  # it would prune what goes on beside it
        futures.wait([upload], max(0.0, begun + seconds - time.monotonic()))
        if not upload.done():
            return f"its upload takes longer than {seconds:.0f} s"
        error = upload.exception()
        if isinstance(error, Interrupted):
            raise error
        return str(error) if error else ""

    def wait(self, look: Callable[[], None] = lambda: None) -> None:
        """Waits for the upload in flight, calling `look` meanwhile. Raises what it failed with."""
        while futures.wait(self._uploads.values(), _LOOK_SECONDS).not_done:
            look()
        self.poll()

    def poll(self) -> None:
        """Raises what an upload failed with, without waiting."""
        for step in [step for step, upload in self._uploads.items() if upload.done()]:
            self._uploads.pop(step).result()

    def _start(self, step: int, snapshot: Snapshot, prune: bool) -> Future[None]:
        upload: Future[None] = Future()
        self._uploads[step] = upload
        threading.Thread(
            target=self._run_upload, args=(upload, step, snapshot, prune), name="checkpoint", daemon=True
        ).start()
        return upload

    def _run_upload(self, upload: Future[None], step: int, snapshot: Snapshot, prune: bool) -> None:
        folder = self._scratch / f"save-{step}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._put(step, folder, snapshot)
            if prune:
                self._prune(step)
            upload.set_result(None)
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
            upload.set_exception(self._taken_over() or explain(error) or error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _taken_over(self) -> Interrupted | None:
        """Whether a newer attempt has taken over: what it has deleted is then why something went wrong here."""
        try:
            self._fence.check()
        except Interrupted as error:
            return error
        except TrainerError as error:
            log.debug("the fence cannot be looked at", error=error.message)
        return None

    def _put(self, step: int, folder: Path, snapshot: Snapshot) -> None:
        started = time.monotonic()
        prefix = prefix_of(step)
        with naming(str(folder)):
            snapshot(folder)
        files = files_below(folder, prefix)
        sums = {name: (path.stat().st_size, crc32c(path)) for name, path in files.items()}
        written = time.monotonic()
        self._upload(prefix, files, sums)
        manifest = {
            "version": _VERSION,
            "step": step,
            **self._identity,
            "files": [
                {"name": name.removeprefix(f"{prefix}/"), "size": size, "crc32c": checksum}
                for name, (size, checksum) in sums.items()
            ],
        }
        self._fence.check()
        self._vouch(f"{prefix}/{MANIFEST}", json.dumps(manifest, indent=2).encode())
        now = time.monotonic()
        log.info(
            "checkpoint saved",
            step=step,
            megabytes=round(sum(size for size, _ in sums.values()) / 1e6, 1),
            seconds=round(now - started, 2),
            written=round(written - started, 2),
            training_waited=round(self.blocked, 3),
        )
        with self._lock:
            if step > (self.last_step or 0):
                self.last_step = step
                self._saved(step, self._storage.locate(prefix))

    def _upload(self, prefix: str, files: Mapping[str, Path], sums: Mapping[str, tuple[int, str]]) -> None:
        """Uploads the files, and looks at what has arrived: a manifest must not vouch for anything else.

        What lies there is damaged or was never finished: this step would otherwise have been resumed from. It is found
        before the look at the fence, and only that very generation is deleted, and nothing is written over: whoever is
        held up after the look must not touch what a newer attempt writes meanwhile.
        """
        wrong, fault = dict(files), ""
        for _ in range(_TRIES):
            there = self._storage.list(f"{prefix}/")
            self._fence.check()
            arrived = files.keys() - wrong.keys()
            self._storage.delete_found(_manifest_first([item for item in there if item.name not in arrived]))
            try:
                self._storage.upload(wrong, new=True)
            except PreconditionFailed as error:
                fault = f"{error} is written by another process"
                log.warning("another process writes the files of this checkpoint", file=str(error))
                continue
            found = {item.name: item for item in self._storage.list(f"{prefix}/")}
            wrong = {name: path for name, path in files.items() if not _is(found.get(name), *sums[name])}
            if not wrong:
                return
            fault = f"{self._storage.locate(next(iter(wrong)))} arrives damaged"
            log.warning("files of a checkpoint arrived damaged", files=sorted(wrong))
        self._fence.check()
        raise StorageUnavailable(f"{fault}, {_TRIES} times in a row")

    def _vouch(self, name: str, manifest: bytes) -> None:
        """Writes the manifest; one that an older attempt sent long ago, for files of its own, is replaced."""
        generation = 0
        for _ in range(_TRIES):
            try:
                self._storage.write(name, manifest, if_generation_match=generation)
            except PreconditionFailed:
                log.warning("another process has written the manifest of this checkpoint", manifest=name)
                generation = generation_of(self._storage, name)
                self._fence.check()
            else:
                return
        raise StorageUnavailable(f"{self._storage.locate(name)} changes all the time: another process writes it")

    def _prune(self, newest: int) -> None:
        """Deletes older checkpoints beyond `keep`, and what interrupted uploads have left.

        What cannot be deleted now is found again after the next checkpoint: that is no reason to end a run.
        """
        found = self._storage.list(FOLDER)
        names = [item.name for item in found]
        whole = sorted({_step(name) for name in names if name.endswith(f"/{MANIFEST}")} | {newest}, reverse=True)
        kept = {step for step in whole if step > newest} | set([step for step in whole if step <= newest][: self._keep])
        doomed = [item for item in found if 0 <= (step := _step(item.name)) < newest and step not in kept]
        try:
            self._fence.check()
            self._storage.delete_found(_manifest_first(doomed))
        except Interrupted:
            raise
        except TrainerError as error:
            log.warning("old checkpoints cannot be deleted", error=error.message)


def _is(found: StoredObject | None, size: int, checksum: str) -> bool:
    """Whether an object has arrived as it was sent; a storage that knows no checksum is believed."""
    return found is not None and found.size == size and found.crc32c in ("", checksum)


def _step(name: str) -> int:
    """Step of a checkpoint's object; -1 for an object that is none."""
    match = _NAME.match(name)
    return int(match.group(1)) if match else -1


def _manifest_first(items: list[StoredObject]) -> list[StoredObject]:
    return sorted(items, key=lambda item: not item.name.endswith(f"/{MANIFEST}"))
