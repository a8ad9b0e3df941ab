"""The end of a run: adapter, model card and report in the bucket, and last the manifest that consumers trust."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemmatune_api.status import Artifacts
from gemmatune_trainer import card, report
from gemmatune_trainer.data.templates import chat_template
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ownership import FINAL_MANIFEST, Fence
from gemmatune_trainer.result import Result
from gemmatune_trainer.storage import ObjectMissing, Storage, files_below

NAME = FINAL_MANIFEST
ADAPTER = "adapter"
WEIGHTS = "adapter_model.safetensors"
REPORT = "report/report.html"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """One file of the adapter: its object below the prefix, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Finished:
    """What the manifest of a finished run says."""

    steps: int
    artifacts: Artifacts
    adapter: tuple[AdapterFile, ...]


def find(storage: Storage, resume_hash: str) -> Finished | None:
    """The finished run below the prefix, where it is this one; None where there is none, or another run's."""
    try:
        found = json.loads(storage.read(NAME))
        if found["resumeHash"] != resume_hash:
            return None
        adapter = (AdapterFile(str(file["name"]), int(file["size"]), str(file["sha256"])) for file in found["adapter"])
        return Finished(int(found["steps"]), Artifacts.model_validate(found["artifacts"]), tuple(adapter))
    except (ObjectMissing, ValueError, KeyError, TypeError):
        return None


def publish(result: Result, storage: Storage, fence: Fence, folder: Path, scratch: Path) -> Artifacts:
    """Uploads the adapter in `folder` with tokenizer and card, the report, and last the manifest.

    Raises:
        Interrupted: a newer attempt has taken over; then no manifest is written.
    """
    write_tokenizer(result.files, folder)
    (folder / "README.md").write_text(card.render(result), encoding="utf-8")
    page = scratch / "report.html"
    page.write_text(report.render(result), encoding="utf-8")
    fence.check()
    files = files_below(folder, ADAPTER)
    stale = {item.name for item in storage.list(f"{ADAPTER}/")} - set(files)
    storage.upload({**files, REPORT: page})
    storage.delete(sorted(stale))
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    artifacts = Artifacts(
        adapter=storage.locate(ADAPTER),
        manifest=storage.locate(NAME),
        report=storage.locate(REPORT),
        sha256=digest,
        serve_command=serve_command(result, storage.locate(ADAPTER)),
    )
    fence.check()
    storage.write(NAME, json.dumps(_document(result, files, artifacts), indent=2, ensure_ascii=False).encode())
    return artifacts


def _document(result: Result, files: dict[str, Path], artifacts: Artifacts) -> dict[str, Any]:
    last = result.history.points[-1] if result.history.points else None
    verification = result.verification
    return {
        "version": _VERSION,
        "run": result.config.run.model_dump(by_alias=True),
        "attempt": result.config.attempt,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "resumeHash": result.claim.resume_hash,
        "dataHash": result.claim.data_hash,
        "model": {"uri": result.config.model.uri, "revision": result.files.revision, "name": result.files.model.label},
        "steps": result.total_steps,
        "step": result.step,
        "loss": last.loss if last else None,
        "evaluations": [asdict(item) for item in result.history.evaluations],
        "adapter": [
            {"name": name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for name, path in files.items()
        ],
        "verified": {"delta": verification.delta, "largestDifference": verification.largest_difference}
        if verification
        else None,
        "artifacts": artifacts.model_dump(by_alias=True, exclude_none=True),
        "versions": result.versions,
    }


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


def write_tokenizer(files: ModelFiles, folder: Path) -> None:
    """Copies the base's tokenizer beside the adapter, with the chat template that was trained."""
    for name in _TOKENIZER_FILES:
        if (source := files.folder / name).is_file():
            (folder / name).write_bytes(source.read_bytes())
    rules = files.model.rules
    if rules.chat:
        (folder / "chat_template.jinja").write_text(chat_template(rules), encoding="utf-8")


def serve_command(result: Result, adapter: str) -> str:
    """A command that serves the base with the adapter (vLLM)."""
    name = result.config.run.name
    path = adapter.removeprefix("file://")
    fetch = ""
    if adapter.startswith("gs://"):
        path = f"./{name}"
        fetch = f"gcloud storage cp -r {shlex.quote(adapter + '/*')} {shlex.quote(path)} && "
    base = result.base_name.removeprefix("file://")
    rank = result.config.method.rank
    return (
        f"{fetch}vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {max(8, rank)} "
        f"--lora-modules {shlex.quote(f'{name}={path}')}"
    )
