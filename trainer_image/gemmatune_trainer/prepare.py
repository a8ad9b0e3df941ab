"""The story of a preparation: access first, then data read and hashed, then ownership, then tokenised rows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from gemmatune_api import catalog, trainable
from gemmatune_api.messages import PreparedModel, PrepareResult
from gemmatune_api.names import Reason
from gemmatune_api.runconfig import RunConfig, RunDataset
from gemmatune_api.status import DataStatus
from gemmatune_trainer import ownership
from gemmatune_trainer.access import PATIENCE_SECONDS, granted, in_pod, probe
from gemmatune_trainer.backends import keras_limits
from gemmatune_trainer.data import images, prepared, spool
from gemmatune_trainer.data.formats import documents, formatter
from gemmatune_trainer.data.imagestore import ImageStore
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.data.sources import evaluation_source, open_rows
from gemmatune_trainer.data.spool import Spool
from gemmatune_trainer.data.templates import check
from gemmatune_trainer.data.tokenize import RowTokenizer
from gemmatune_trainer.errors import DataInvalid, InvalidConfig
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import ModelFiles, cache_folder, fetch, keep_copy
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.storage import Storage, open_storage


def prepare(config: RunConfig, stop: StopFlag, patience: float | None = None) -> PrepareResult:
    """Checks access to model, output and data, and leaves the tokenised rows under the output prefix.

    `patience`: seconds for which a bucket's refusal is asked again (default: 120 in a pod, else 0).

    Raises:
        TrainerError: an end that has an exit code of its own.
    """
    seconds = patience if patience is not None else (PATIENCE_SECONDS if in_pod() else 0.0)
    namespace = config.run.namespace
    formatter(config.dataset)  # a template that cannot be read is told before anything is fetched
    files = granted(config.model.uri, lambda: fetch(config.model, weights=False), seconds, namespace)
    check(config.dataset, files.model.rules)
    trainable_here(config, files)
    tokenizer = files.tokenizer
    storage = granted(config.output.uri, lambda: _reach(config.output.uri), seconds, namespace)
    log.info("access works", model=files.model.label, revision=files.revision, output=storage.uri)
    scratch = Path(tempfile.mkdtemp(prefix="prepare-", dir=cache_folder("data")))
    try:
        store = image_store(config, files, scratch)
        read = granted(config.dataset.uri, lambda: _read(config.dataset, scratch, stop, store), seconds, namespace)
        evaluation = _evaluation(config, scratch, stop, seconds, store)
        name = prepared.data_hash(read, config.dataset, tokenizer, evaluation, store)
        log.info("data read", rows=read.rows, hash=name, **({"images": len(store.places)} if store else {}))
        ownership.claim(storage, config, files.revision, name)
        data = _prepared(storage, name, (read, evaluation, store), config, tokenizer, scratch, stop)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    with stop.at_once("copying the model"):  # last: its disk is free then, and what comes before is kept
        note = keep_copy(config.model, files.revision)
    return PrepareResult(
        reason=Reason.PREPARED,
        message=f"{summary(data)} {note}".rstrip(),
        model=PreparedModel(
            family=files.model.family,
            size=files.model.name or None,
            revision=files.revision,
            shape=catalog.planner_shape(files.config),
        ),
        data=data,
    )


def trainable_here(config: RunConfig, files: ModelFiles) -> None:
    """Refuses what the run's backend cannot train of this model, while no accelerator waits.

    Raises:
        InvalidConfig: by its config.json, or by the modules that the adapter names.
    """
    refused = trainable.family_refused(config.backend, files.model)
    if refused is not None:
        raise InvalidConfig(f"model.uri: {refused[0]}", refused[1])
    if config.backend == "keras":
        keras_limits.check(files.config)
    targets = config.method.target_modules
    wrong = trainable.modules_refused(config.backend, targets, files.model) if isinstance(targets, list) else None
    if wrong is not None:
        raise InvalidConfig(f"{config.method.kind}.targetModules {', '.join(wrong[0])} {wrong[1]}", wrong[2])


def summary(data: DataStatus) -> str:
    """What was prepared, in a sentence; what was cut, dropped or doubled is always said."""
    text = f"{data.rows} rows are prepared: {data.tokens} tokens, {data.labelled_tokens} of them trained"
    if data.truncated_rows:
        text += f"; {data.truncated_rows} rows were cut at dataset.maxLength ({data.cut_tokens} tokens lost)"
    if data.dropped_rows:
        text += f"; {data.dropped_rows} rows were dropped as too long"
    if data.duplicates:
        text += f"; {data.duplicates} rows repeat another"
    if data.eval_rows:
        text += f"; {data.eval_rows} rows are kept for evaluation"
    if data.eval_truncated_rows:
        text += f"; {data.eval_truncated_rows} of these were cut ({data.eval_cut_tokens} tokens lost)"
    if data.eval_dropped_rows:
        text += f"; {data.eval_dropped_rows} rows for evaluation were dropped as too long"
    return f"{text}."


def _reach(uri: str) -> Storage:
    storage = open_storage(uri)
    probe(storage)
    return storage


def image_store(config: RunConfig, files: ModelFiles, scratch: Path) -> ImageStore | None:
    """Where the rows' images go, at the size of the model; None where they have none. Checks those of the prompts.

    Raises:
        InvalidConfig: the image of a prompt cannot be read.
    """
    if config.dataset.image_text is None:
        return None
    size = files.image_size
    for index, uri in enumerate(config.samples.images or []):
        images.picture(uri, size, f"samples.prompts[{index}].image")
    return ImageStore(scratch / prepared.IMAGES, size)


def _read(
    dataset: RunDataset,
    scratch: Path,
    stop: StopFlag,
    store: ImageStore | None,
    name: str = "documents",
    secret_of: str | None = None,
) -> Spool:
    """The documents of the data, kept below `scratch`; `secret_of` as open_rows has it."""
    rows = _watched(open_rows(dataset, cache_folder(""), secret_of), stop)
    return spool.write(documents(rows, dataset, store), scratch / f"{name}.jsonl")


def _evaluation(
    config: RunConfig, scratch: Path, stop: StopFlag, seconds: float, store: ImageStore | None
) -> Spool | None:
    """The documents of dataset.evalUri; None where there is none."""

    def read() -> Spool | None:
        source = evaluation_source(config.dataset, cache_folder(""))
        return _read(source, scratch, stop, store, "evaluation", config.dataset.uri) if source is not None else None

    return granted(config.dataset.eval_uri or "", read, seconds, config.run.namespace)


def _watched(rows: Iterable[Row], stop: StopFlag) -> Iterator[Row]:
    """The rows, until the process is asked to stop."""
    for row in rows:
        stop.check("the data was read")
        yield row


def _prepared(
    storage: Storage,
    name: str,
    read: tuple[Spool, Spool | None, ImageStore | None],
    config: RunConfig,
    tokenizer: RowTokenizer,
    scratch: Path,
    stop: StopFlag,
) -> DataStatus:
    """The prepared rows: those that are there already, else made and uploaded."""
    data = prepared.find(storage, name)
    if data is not None:
        log.info("prepared rows found", hash=name, rows=data.rows)
    else:
        folder = scratch / "rows"
        trained, evaluation, store = read
        before_batch = partial(stop.check, "the data was tokenised")
        data = prepared.write(trained, config.dataset, tokenizer, folder, before_batch, evaluation, store)
    size = config.training.global_batch_size
    if data.rows < size:
        raise DataInvalid(
            f"the data has {data.rows} rows, one step needs training.globalBatchSize = {size}",
            "Lower training.globalBatchSize, or add rows.",
        )
    if not (scratch / "rows").exists():
        return data
    prepared.publish(storage, name, scratch / "rows")
    log.info("rows prepared", **data.model_dump(by_alias=False))
    return data
