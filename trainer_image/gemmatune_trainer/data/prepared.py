"""Tokenised rows under the output prefix, by the hash of what they were made from: written once, then only loaded.

`prepared/DATAHASH/` holds rows.arrow (mapped.py), evaluation.arrow where rows are kept for evaluation, images.bin
(imagestore.py) where they have images, statistics.json and, written last, manifest.json with the sizes and CRC32C of
all. Without it nothing there exists.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from gemmatune_api.catalog import GenerationRules
from gemmatune_api.runconfig import RunDataset
from gemmatune_api.status import DataStatus
from gemmatune_trainer.data.digests import held_out
from gemmatune_trainer.data.formats import Document, ImageText, characters
from gemmatune_trainer.data.imagestore import ImageStore
from gemmatune_trainer.data.mapped import SCHEMA, PreparedData, PreparedImages, with_images
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.data.spool import Spool
from gemmatune_trainer.data.templates import render
from gemmatune_trainer.data.tokenize import RowTokenizer, Tokens, fit
from gemmatune_trainer.errors import DataInvalid
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, Storage, crc32c
from gemmatune_trainer.stored import Shape, Unreadable, shortened

ROWS = "rows.arrow"
EVALUATION = "evaluation.arrow"
IMAGES = "images.bin"
STATISTICS = "statistics.json"
MANIFEST = "manifest.json"
BATCH_ROWS = 1000
BATCH_LENGTH = 1 << 20
"""Rows that are tokenised and written at once, and their characters and tokens together: the bounds of memory."""
Item = TypeVar("Item")
_VERSION = 1
"""To be raised when the same documents would become other tokens or labels."""


def prefix_of(data_hash: str) -> str:
    """Name prefix of the prepared data below the output prefix."""
    return f"prepared/{data_hash}"


def data_hash(
    spool: Spool,
    dataset: RunDataset,
    tokenizer: RowTokenizer,
    evaluation: Spool | None = None,
    images: ImageStore | None = None,
) -> str:
    """Hash of what decides the tokenised rows: documents, templates, tokenizer and lengths (hex, 16 characters).

    `evaluation`: the documents of dataset.evalUri. Documents name their images by content.
    """
    decides = {
        "version": _VERSION,
        "documents": spool.digest,
        "rules": _template_rules(tokenizer.rules),
        "tokenizer": tokenizer.fingerprint,
        "maxLength": dataset.max_length,
        "tooLong": dataset.too_long,
        "evaluation": evaluation.digest if evaluation is not None else dataset.eval_fraction,
    }
    if images is not None:
        decides["imageSize"] = images.size
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


_TEMPLATE_FIELDS = (
    "bos", "eos", "turn_start", "turn_end", "user_role", "model_role", "system", "system_role", "system_separator",
)  # fmt: skip


def _template_rules(rules: GenerationRules) -> dict[str, Any]:
    fields = asdict(rules)
    return {name: fields[name] for name in _TEMPLATE_FIELDS}


@dataclass
class _Counts:
    """What is counted while rows are tokenised."""

    rows: int = 0
    tokens: int = 0
    labelled_tokens: int = 0
    truncated_rows: int = 0
    cut_tokens: int = 0
    dropped_rows: int = 0
    longest: int = 0


_COUNTED_OF_HELD = ("rows", "truncated_rows", "cut_tokens", "dropped_rows")


def write(
    spool: Spool,
    dataset: RunDataset,
    tokenizer: RowTokenizer,
    folder: Path,
    before_batch: Callable[[], None] = lambda: None,
    evaluation: Spool | None = None,
    images: ImageStore | None = None,
) -> DataStatus:
    """Tokenises the documents into `folder` (the files of the module's text), in batches; what was counted.

    `before_batch` is called before each batch and may raise to end the work. `evaluation` holds the documents of
    dataset.evalUri; with dataset.evalFraction they are taken out of `spool`. `images`: those of all documents, which
    are finished with this.

    Raises:
        DataInvalid: a row is too long and tooLong is fail (names the row), or no row is left to train or evaluate on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained, held = _split(spool, dataset, evaluation)
    schema = SCHEMA if images is None else with_images(images.size)

    def tokenised(documents: Iterable[tuple[str, Document]], name: str) -> _Counts:
        counts = _Counts()
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _batches(fitted_rows(documents, dataset, tokenizer, counts), schema, images):
                before_batch()
                writer.write_batch(batch)
        if not counts.rows:
            raise _none_left(counts, dataset, "train" if name == ROWS else "evaluate")
        return counts

    counts = tokenised(trained, ROWS)
    of_held = {}
    if held is not None:
        found = tokenised(held, EVALUATION)
        of_held = {f"eval_{name}": getattr(found, name) for name in _COUNTED_OF_HELD}
    status = DataStatus(
        hash=data_hash(spool, dataset, tokenizer, evaluation, images),
        duplicates=spool.duplicates,
        **asdict(counts),
        **of_held,
    )
    text = status.model_dump_json(by_alias=True, exclude_none=True, indent=2)
    (folder / STATISTICS).write_text(text, encoding="utf-8")
    if images is not None:
        images.finish(folder / IMAGES)
    return status


_Documents = Iterable[tuple[str, Document]]


def _split(spool: Spool, dataset: RunDataset, evaluation: Spool | None) -> tuple[_Documents, _Documents | None]:
    """The documents to train on, and those to evaluate on (None: there shall be none)."""
    if evaluation is not None or dataset.eval_fraction is None:
        return spool, evaluation
    held = partial(held_out, spool.digests, dataset.eval_fraction)
    return compress(spool, map(operator.not_, held())), compress(spool, held())


def _none_left(counts: _Counts, dataset: RunDataset, what: str) -> DataInvalid:
    if not counts.dropped_rows:
        return DataInvalid(f"no row is left to {what} on", "Add rows, or lower dataset.evalFraction.")
    return DataInvalid(
        f"no row is left to {what} on: all {counts.dropped_rows} rows are longer than dataset.maxLength "
        f"({dataset.max_length} tokens; the longest has {counts.longest}), or have no answer within it",
        "Raise dataset.maxLength.",
    )


def fitted_rows(
    documents: Iterable[tuple[str, Document]], dataset: RunDataset, tokenizer: RowTokenizer, counts: _Counts
) -> Iterator[tuple[Tokens, str]]:
    """The tokens of the documents that are trained, each with its image's digest, and the counts of all of them.

    Raises:
        DataInvalid: a row is too long and tooLong is fail.
    """
    for group, encoded in _encoded_ahead(documents, tokenizer):
        for (where, document), tokens in zip(group, encoded, strict=True):
            length = len(tokens.input_ids)
            counts.longest = max(counts.longest, length)
            fitted = fit(tokens, dataset.max_length, dataset.too_long)
            if fitted is None:
                raise DataInvalid(
                    f"{where} has {length} tokens, dataset.maxLength is {dataset.max_length} and dataset.tooLong is "
                    "fail",
                    "Raise dataset.maxLength, shorten the row, or set dataset.tooLong to truncate or drop.",
                )
            if fitted.tokens is None:
                counts.dropped_rows += 1
                continue
            counts.rows += 1
            counts.tokens += len(fitted.tokens.input_ids)
            counts.labelled_tokens += fitted.tokens.labelled
            counts.truncated_rows += fitted.cut > 0
            counts.cut_tokens += fitted.cut
            yield fitted.tokens, document.image if isinstance(document, ImageText) else ""


_Group = list[tuple[str, Document]]


def _encoded_ahead(documents: _Documents, tokenizer: RowTokenizer) -> Iterator[tuple[_Group, list[Tokens]]]:
    """Groups of documents with their tokens; the tokenizer, which needs no Python, takes the next group meanwhile."""

    def encoded(group: _Group) -> list[Tokens]:
        return tokenizer.encode_batch([render(document, tokenizer.rules) for _, document in group])

    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as worker:
        waiting: tuple[_Group, Future[list[Tokens]]] | None = None
        for group in _groups(documents, lambda item: characters(item[1])):
            begun = worker.submit(encoded, group)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = group, begun
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _groups(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in their order, as many at a time as BATCH_ROWS and BATCH_LENGTH allow, and at least one."""
    group: list[Item] = []
    held = 0
    for item in items:
        size = length(item)
        if group and (len(group) >= BATCH_ROWS or held + size > BATCH_LENGTH):
            yield group
            group, held = [], 0
        group.append(item)
        held += size
    if group:
        yield group


def _batches(
    rows: Iterator[tuple[Tokens, str]], schema: pa.Schema, images: ImageStore | None
) -> Iterator[pa.RecordBatch]:
    for pairs in _groups(rows, lambda row: len(row[0].input_ids)):
        group = [tokens for tokens, _ in pairs]
        offsets = np.cumsum([0, *(len(row.input_ids) for row in group)], dtype=np.int32)
        ids = np.fromiter(chain.from_iterable(row.input_ids for row in group), np.int32, offsets[-1])
        labels = np.fromiter(chain.from_iterable(row.labels for row in group), np.int32, offsets[-1])
        bits = np.packbits(labels != IGNORED, bitorder="little")
        values = (
            pa.Array.from_buffers(pa.int32(), len(ids), [None, pa.py_buffer(ids)]),
            pa.Array.from_buffers(pa.bool_(), len(ids), [None, pa.py_buffer(bits)]),
        )
        begins = pa.Array.from_buffers(pa.int32(), len(offsets), [None, pa.py_buffer(offsets)])
        columns = [pa.ListArray.from_arrays(begins, column) for column in values]
        if images is not None:
            columns.append(pa.array([images.places[digest] for _, digest in pairs], pa.int32()))
        yield pa.record_batch(columns, schema=schema)


def find(storage: Storage, name: str) -> DataStatus | None:
    """What a preparation of this hash counted, where a whole one is there; else None."""
    prefix = prefix_of(name)
    try:
        files = _manifest_files(storage, name)
        sizes = {item.name: item.size for item in storage.list(f"{prefix}/")}
        if any(sizes.get(f"{prefix}/{file.name}") != file.size for file in files):
            return None
        return DataStatus.model_validate_json(storage.read(f"{prefix}/{STATISTICS}"))
    except (ObjectMissing, ValueError):
        return None


def publish(storage: Storage, name: str, folder: Path) -> None:
    """Uploads what `write` left in `folder`, the manifest last."""
    prefix = prefix_of(name)
    files = {file: folder / file for file in (ROWS, EVALUATION, IMAGES, STATISTICS) if (folder / file).exists()}
    manifest = {
        "version": _VERSION,
        "dataHash": name,
        "files": [{"name": file, "size": path.stat().st_size, "crc32c": crc32c(path)} for file, path in files.items()],
    }
    storage.delete([f"{prefix}/{MANIFEST}"])  # of a preparation that `find` did not trust
    storage.upload({f"{prefix}/{file}": path for file, path in files.items()})
    try:
        storage.write(f"{prefix}/{MANIFEST}", json.dumps(manifest, indent=2).encode(), if_generation_match=0)
    except PreconditionFailed:
        return  # another preparation of the same rows was faster


class _File(Shape):
    name: str
    size: int
    crc32c: str


class _Manifest(Shape):
    data_hash: str = Field(alias="dataHash")
    files: list[_File]


def _manifest_files(storage: Storage, name: str) -> list[_File]:
    """The files of a manifest. Raises ObjectMissing; Unreadable where it is none of this hash."""
    manifest = _Manifest.of(storage.read(f"{prefix_of(name)}/{MANIFEST}"))
    if manifest.data_hash != name:
        raise Unreadable("a manifest of something else")
    if {file.name for file in manifest.files} - {EVALUATION, IMAGES} != {ROWS, STATISTICS}:
        raise Unreadable("a manifest of other files")
    return manifest.files


def load(storage: Storage, output_uri: str, name: str, cache: Path) -> PreparedData:
    """The prepared rows of a hash, downloaded once into `cache`.

    Raises:
        DataInvalid: they are missing, or do not fit their manifest.
    """
    where = f"{output_uri}/{prefix_of(name)}"
    remedy = f"Delete {where} and prepare the run again."
    try:
        files = _manifest_files(storage, name)
        folder = cache / name
        wanted = {file.name: file for file in files}
        if any(not _fits(folder / file, entry) for file, entry in wanted.items()):
            folder.mkdir(parents=True, exist_ok=True)
            storage.download({f"{prefix_of(name)}/{file}": folder / file for file in wanted})
    except (ObjectMissing, Unreadable) as error:
        raise DataInvalid(f"{where} is not whole: {error}", remedy) from error
    damaged = next((file for file, entry in wanted.items() if not _fits(folder / file, entry)), None)
    if damaged is not None:
        raise DataInvalid(f"{where}/{damaged} does not fit its manifest", remedy)

    def rows(name: str, evaluation: Any = None) -> Any:
        if IMAGES in wanted:
            return PreparedImages(folder / name, statistics, folder / IMAGES, evaluation)
        return PreparedData(folder / name, statistics, evaluation)

    try:
        statistics = DataStatus.model_validate_json((folder / STATISTICS).read_bytes())
        found: PreparedData = rows(ROWS, rows(EVALUATION) if EVALUATION in wanted else None)
    except ValueError as error:
        raise DataInvalid(f"{where} cannot be read: {shortened(str(error))}", remedy) from error
    return found


def _fits(path: Path, entry: _File) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and crc32c(path) == entry.crc32c
