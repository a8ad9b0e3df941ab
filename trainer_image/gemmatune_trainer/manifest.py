"""The end of a run: adapter or model, its card and report in the bucket, and last the manifest that consumers trust."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from gemmatune_api import serving
from gemmatune_api.serving import Served
from gemmatune_api.status import Artifacts
from gemmatune_trainer import card, report
from gemmatune_trainer.backends.base import Tally
from gemmatune_trainer.data.templates import chat_template
from gemmatune_trainer.errors import Interrupted, StorageUnavailable
from gemmatune_trainer.generation import write_generation_config
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ownership import FINAL_MANIFEST, Fence
from gemmatune_trainer.result import Result
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, Storage, files_below, generation_of
from gemmatune_trainer.stored import Shape, Unreadable, stays_below

NAME = FINAL_MANIFEST
ADAPTER = "adapter"
MODEL = "model"
REPORT = "report/report.html"
_VERSION = 1
_TRIES = 3


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One file of the result: its object below the prefix, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


class _Manifest(Shape):
    resume_hash: str = Field(alias="resumeHash")
    steps: int
    artifacts: Artifacts
    adapter: list[ResultFile] | None = None
    model: list[ResultFile] | dict[str, Any] | None = None  # beside an adapter, the source


@dataclass(frozen=True)
class Finished:
    """What the manifest of a finished run says."""

    steps: int
    artifacts: Artifacts
    files: tuple[ResultFile, ...]


def find(storage: Storage, resume_hash: str) -> Finished | None:
    """The finished run below the prefix, where it is this one; None where there is none, or another run's."""
    try:
        found = _Manifest.of(storage.read(NAME))
    except (ObjectMissing, Unreadable):
        return None
    files = found.model if found.adapter is None else found.adapter
    if found.resume_hash != resume_hash or not isinstance(files, list):
        return None
    kind = MODEL if found.adapter is None else ADAPTER
    if not all(file.name.startswith(f"{kind}/") and stays_below(file.name[len(kind) + 1 :]) for file in files):
        log.warning("the manifest names files that lie outside of the result", manifest=storage.locate(NAME))
        return None
    return Finished(found.steps, found.artifacts, tuple(files))


def publish(result: Result, storage: Storage, fence: Fence, folder: Path, scratch: Path) -> Artifacts:
    """Uploads the adapter or model in `folder` with tokenizer and card, the report, and last the manifest.

    Raises:
        Interrupted: a newer attempt has taken over; then no manifest is written.
    """
    write_tokenizer(result.files, folder)
    if result.kind == ADAPTER:  # a whole model has brought its own
        write_generation_config(result.files, folder)
    (folder / "README.md").write_text(card.render(result), encoding="utf-8")
    page = scratch / "report.html"
    page.write_text(report.render(result), encoding="utf-8")
    manifest = generation_of(storage, NAME)  # one that vouches for nothing of this run, or none
    files = files_below(folder, result.kind)
    put_anew(storage, fence, f"{result.kind}/", files)
    put_anew(storage, fence, REPORT, {REPORT: page})
    listed = [ResultFile(name, path.stat().st_size, _sha256(path)) for name, path in files.items()]
    where = {result.kind: storage.locate(result.kind)}
    artifacts = Artifacts(
        **where,
        manifest=storage.locate(NAME),
        report=storage.locate(REPORT),
        sha256=digest_of(listed),
        serve_command=serve_command(result, storage.locate(result.kind)),
    )
    fence.check()
    text = json.dumps(_document(result, listed, artifacts), indent=2, ensure_ascii=False).encode()
    try:
        storage.write(NAME, text, if_generation_match=manifest)
    except PreconditionFailed as error:
        fence.check()
        raise Interrupted(f"another process has written {storage.locate(NAME)}") from error
    return artifacts


def put_anew(storage: Storage, fence: Fence, prefix: str, files: Mapping[str, Path]) -> None:
    """Uploads files in the place of what lies below `prefix`, and of nothing that a newer attempt writes there.

    What lies there is found before the look at the fence, and only those generations are deleted: a process that is
    held up after the look, for however long, finds its successor's files to be others, or their names taken.

    Raises:
        Interrupted: a newer attempt has taken over.
    """
    for _ in range(_TRIES):
        there = storage.list(prefix)
        fence.check()
        storage.delete_found(there)
        try:
            storage.upload(files, new=True)
        except PreconditionFailed as error:
            taken = error
            continue
        return
    fence.check()
    raise StorageUnavailable(f"{taken} changes all the time: another process writes there")


def digest_of(files: list[ResultFile]) -> str:
    """SHA-256 of an adapter's weights; of a model, whose weights are several files, that of the list of theirs."""
    weights = sorted((file for file in files if file.name.endswith(".safetensors")), key=lambda file: file.name)
    if len(weights) == 1 and weights[0].name.startswith(f"{ADAPTER}/"):
        return weights[0].sha256
    lines = "".join(f"{file.sha256}  {file.name.rpartition('/')[2]}\n" for file in weights)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document(result: Result, files: list[ResultFile], artifacts: Artifacts) -> dict[str, Any]:
    last = result.history.points[-1] if result.history.points else None
    verification = result.verification
    source = {"uri": result.config.model.uri, "revision": result.files.revision, "name": result.files.model.label}
    return {
        "version": _VERSION,
        "run": result.config.run.model_dump(by_alias=True),
        "attempt": result.config.attempt,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "resumeHash": result.claim.resume_hash,
        "dataHash": result.claim.data_hash,
        "source": source,
        MODEL: source,  # of full tuning the files of the result stand here, below
        "base": {"name": result.files.published_name[0], "revision": result.files.published_name[1]},
        "method": {
            "kind": result.config.method.kind,
            "rank": result.config.method.rank,
            "servedRank": served_rank(result),
            "text": report.method_text(result),
        },
        "chat": _chat(result),
        "images": result.files.model.rules.images,
        "settings": dict(report.settings(result.config)),
        "data": result.data.model_dump(by_alias=True, exclude_none=True),
        "samples": [
            {"prompt": prompt, "before": before, "after": after}
            for prompt, before, after in zip(result.prompts, result.before, result.after, strict=False)
        ],
        "tokensPerSecond": result.history.median_speed,
        "memory": result.history.highest_memory,
        "compiled": _compiled(result.tally) if result.tally else None,
        "steps": result.total_steps,
        "step": result.step,
        "firstLoss": result.history.points[0].loss if last else None,
        "loss": last.loss if last else None,
        "evaluations": [asdict(item) for item in result.history.evaluations],
        result.kind: [asdict(file) for file in files],
        "verified": {
            "delta": verification.delta,
            "largestDifference": verification.largest_difference,
            "trainedParameters": verification.parameters,
            "exportedParameters": verification.exported or verification.parameters,
        }
        if verification
        else None,
        "warnings": result.warnings,
        "artifacts": artifacts.model_dump(by_alias=True, exclude_none=True),
        "versions": result.versions,
    }


def _compiled(tally: Tally) -> dict[str, float]:
    told = tally.told
    return {"afterStep2": told.pop("after_step_2"), **told}


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


def write_tokenizer(files: ModelFiles, folder: Path) -> None:
    """Copies the base's tokenizer beside the result, with the chat template that was trained."""
    for name in _TOKENIZER_FILES:
        if (source := files.folder / name).is_file():
            (folder / name).write_bytes(source.read_bytes())
    rules = files.model.rules
    if rules.chat:
        (folder / "chat_template.jinja").write_text(chat_template(rules), encoding="utf-8")


def serve_command(result: Result, where: str) -> str:
    """A command that serves the base with the adapter, or the whole model (vLLM); `gft serve-command` has others."""
    base, revision = result.files.published_name
    served = Served(
        name=result.config.run.name,
        base=base,
        where=where,
        kind="model" if result.kind == MODEL else "adapter",
        revision=revision,
        rank=served_rank(result),
        chat=_chat(result),
        images=result.files.model.rules.images,
    )
    return serving.vllm(served)


def served_rank(result: Result) -> int:
    """The largest rank of the adapter's modules, which a server must be told; 0 for a whole model."""
    written = result.verification.rank if result.verification else None
    return written or result.config.method.rank or 0


def _chat(result: Result) -> bool:
    return result.files.model.rules.chat and result.config.dataset.text is None
