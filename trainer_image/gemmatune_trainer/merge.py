"""The story of a merge: the finished run's adapter and its base in 16 bit become one model, verified as it is read."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.status import Artifacts
from gemmatune_trainer import access, manifest, merged, ownership
from gemmatune_trainer.data import prepared
from gemmatune_trainer.data.mapped import PreparedData
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.errors import DataInvalid, InvalidConfig, naming
from gemmatune_trainer.generation import terminator_ids
from gemmatune_trainer.logs import log
from gemmatune_trainer.merged import Inputs, Scores
from gemmatune_trainer.models import ModelFiles, cache_folder, fetch
from gemmatune_trainer.progress import Reporter, open_sink
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.storage import ObjectMissing, Storage

if TYPE_CHECKING:
    from gemmatune_trainer.backends.base import Row

KNOWN_TOKENS = 512
"""Tokens on which the three models are compared, held-out ones where there are: each is one pass on a CPU."""
LONGEST_ROW = 2048
"""Of a longer row the end is used: answers lie there."""


def merge(config: RunConfig, stop: StopFlag) -> TerminationMessage:
    """Writes the merged weights of a finished run; its end as a message.

    Raises:
        TrainerError: an end that has an exit code of its own.
    """
    if config.method.kind == "full":
        raise InvalidConfig("full tuning leaves no adapter: there is nothing to merge", "Remove output.merge.")
    with stop.at_once("reading the output"):
        storage, claimed = access.claimed(config)
    finished = manifest.find(storage, claimed.resume_hash)
    if finished is None:
        raise InvalidConfig(f"{storage.locate(manifest.NAME)} is no manifest of this run: there is nothing to merge")
    sha256 = finished.artifacts.sha256 or ""
    inputs = Inputs(claimed.resume_hash, config.model.uri, claimed.model_revision, sha256)
    reporter = Reporter(open_sink(config.run), training=False)
    scores = merged.find(storage, inputs)
    if scores is not None:
        log.info("the merge is finished already", manifest=storage.locate(merged.NAME))
        reporter.start()
        return _completed(storage, reporter, finished.artifacts, scores)
    ownership.hold(storage)
    fence = ownership.Fence.take(storage, claimed, config.attempt, merge=True)
    scratch = cache_folder("merges") / f"{config.run.uid}-{config.attempt}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        reporter.start()
        adapter = fetch_adapter(storage, finished, scratch / "adapter")
        rows = prepared.load(storage, config.output.uri, claimed.data_hash, cache_folder("data"))
        files = fetch(config.model, weights=True, revision=claimed.model_revision)
        stop.check("loading the model")

        def alive(doing: str) -> None:
            reporter.alive()
            stop.check(doing)

        folder = scratch / "merged"
        with stop.at_once("the merge"):
            scores = _merged(config, files, adapter, rows, folder, alive)
        merged.publish(storage, fence, folder, inputs, scores, lambda: alive("the merged weights were uploaded"))
        return _completed(storage, reporter, finished.artifacts, scores)
    finally:
        reporter.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _merged(
    config: RunConfig,
    files: ModelFiles,
    adapter: Path,
    rows: PreparedData,
    folder: Path,
    alive: Callable[[str], None],
) -> Scores:
    """Lets torch merge into `folder`; its libraries are imported only here, after everything that can fail early."""
    started = time.monotonic()
    from gemmatune_trainer.backends.merger import Merger

    log.info("libraries loaded", seconds=round(time.monotonic() - started, 1))
    held_out = rows.evaluation is not None
    merger = Merger(files, known_rows(rows.evaluation or rows), held_out, alive)
    merger.load(adapter)
    with naming(str(folder)):
        merger.write(folder, terminator_ids(files.tokenizer))
    manifest.write_tokenizer(files, folder)
    scores = merger.verify(folder)
    log.info("merge verified", base=scores.base_loss, adapter=scores.adapter_loss, merged=scores.merged_loss)
    return scores


def fetch_adapter(storage: Storage, finished: manifest.Finished, folder: Path) -> Path:
    """The adapter that the manifest of the run names, downloaded and compared with it.

    Raises:
        DataInvalid: a file is missing or is not the one that the manifest names.
    """
    names = {file.name: folder / file.name.removeprefix(f"{manifest.ADAPTER}/") for file in finished.files}
    remedy = "Restore the files of the adapter, or train again as a new resource with another output.uri."
    try:
        storage.download(names)
    except ObjectMissing as error:
        raise DataInvalid(f"{error} is missing, and the manifest of the run names it", remedy) from error
    for file in finished.files:
        if hashlib.sha256(names[file.name].read_bytes()).hexdigest() != file.sha256:
            raise DataInvalid(f"{storage.locate(file.name)} is not the file that the manifest of the run names", remedy)
    return folder


def known_rows(rows: PreparedData) -> list[Row]:
    """The first rows, until they have KNOWN_TOKENS tokens."""
    found: list[Row] = []
    tokens = 0
    for index in range(rows.rows):
        ids, labels = (part[-LONGEST_ROW:] for part in rows.row(index))
        found.append((ids, labels))
        tokens += len(ids)
        if tokens >= KNOWN_TOKENS:
            break
    if any(label != IGNORED for _, labels in found for label in labels[1:]):
        return found
    return [(ids, ids) for ids, _ in found]  # all that is trained of them lies before their end


def _completed(storage: Storage, reporter: Reporter, artifacts: Artifacts, scores: Scores) -> TerminationMessage:
    uri = storage.locate(merged.FOLDER)
    reporter.artifacts(artifacts.model_copy(update={"merged": uri}))
    reporter.close()
    log.info("done", merged=uri)
    return TerminationMessage(reason=Reason.COMPLETED, message=scores.text, manifest=storage.locate(merged.NAME))
