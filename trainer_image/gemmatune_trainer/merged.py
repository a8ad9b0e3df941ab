"""The merged weights in the bucket: shards first, and last the manifest without which nothing there exists."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.logs import log
from gemmatune_trainer.ownership import Fence
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, Storage, crc32c, files_below
from gemmatune_trainer.stored import Shape, Unreadable
from gemmatune_trainer.versions import versions

FOLDER = "merged"
NAME = f"{FOLDER}/manifest.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Inputs:
    """What decides the merged weights: another adapter or base gives other ones."""

    resume_hash: str
    model_uri: str
    model_revision: str
    adapter_sha256: str


@dataclass(frozen=True, slots=True)
class Scores:
    """The comparison of base, base with adapter, and merged model on rows held out, or else on rows of the training.

    Losses are in nats per labelled token. `difference` is the root mean square of what merging changes in the logits,
    relative to that of the logits themselves; `delta` the same of what the adapter changes.
    """

    rows: int
    held_out: bool
    tokens: int
    base_loss: float
    adapter_loss: float
    merged_loss: float
    difference: float
    delta: float

    @property
    def text(self) -> str:
        """The losses in a sentence."""
        kind = "held-out" if self.held_out else "training"
        return (
            f"Nats per token on {self.tokens} {kind} tokens: base {self.base_loss:.4g}, with adapter "
            f"{self.adapter_loss:.4g}, merged {self.merged_loss:.4g}."
        )


class _File(Shape):
    name: str
    size: int
    crc32c: str


class _Manifest(Shape):
    inputs: Inputs
    files: list[_File]
    verified: Scores


def find(storage: Storage, inputs: Inputs) -> Scores | None:
    """What the manifest of a whole merge of these inputs says; None where there is none."""
    try:
        found = _Manifest.of(storage.read(NAME))
    except (ObjectMissing, Unreadable):
        return None
    if found.inputs != inputs:
        return None
    sizes = {item.name: item.size for item in storage.list(f"{FOLDER}/")}
    if any(sizes.get(f"{FOLDER}/{file.name}") != file.size for file in found.files):
        return None
    return found.verified


def publish(
    storage: Storage, fence: Fence, folder: Path, inputs: Inputs, scores: Scores, between: Callable[[], None]
) -> None:
    """Uploads the files of `folder`, each of which leaves it then, and last the manifest.

    `between` is called before each file and may raise to end the work.

    Raises:
        Interrupted: a newer merge has taken over; then no manifest is written.
    """
    files = files_below(folder, FOLDER)
    document = _document(files, inputs, scores)
    there = storage.list(f"{FOLDER}/")
    fence.check()
    # Of other inputs, or not whole; the manifest, which must not vouch for the new ones, goes first.
    storage.delete_found(sorted(there, key=lambda item: item.name != NAME))
    for name, path in files.items():
        between()
        try:
            storage.upload({name: path}, new=True)
        except PreconditionFailed as error:
            fence.check()
            raise Interrupted(f"another process has written {storage.locate(name)}") from error
        path.unlink()
    fence.check()
    text = json.dumps(document, indent=2).encode()
    try:
        storage.write(NAME, text, if_generation_match=0)
    except PreconditionFailed as error:
        fence.check()
        if not _is_there(storage, document):
            raise Interrupted(f"another process has written {storage.locate(NAME)}") from error
        log.warning("another process has written the manifest of the same merge")


def _is_there(storage: Storage, document: Mapping[str, Any]) -> bool:
    """Whether the manifest in the bucket names the same files."""
    try:
        found = _Manifest.of(storage.read(NAME))
    except (ObjectMissing, Unreadable):
        return False
    return [file.model_dump() for file in found.files] == document["files"]


def _document(files: Mapping[str, Path], inputs: Inputs, scores: Scores) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "inputs": asdict(inputs),
        "files": [
            {"name": name.removeprefix(f"{FOLDER}/"), "size": path.stat().st_size, "crc32c": crc32c(path)}
            for name, path in files.items()
        ],
        "verified": asdict(scores),
        "versions": versions(),
    }
