"""Rows from where the data is: files (file://, pvc://), a bucket (gs://), or a repository of a hub (hf://, ms://)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer import blocks, claims
from gemmatune_trainer.data.pattern import WILDCARDS, Pattern
from gemmatune_trainer.data.readers import SUPPORTED, read, reader_of
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import DataInvalid, InvalidConfig, naming
from gemmatune_trainer.storage import ObjectMissing, Storage, StoredObject, open_storage
from gemmatune_trainer.tokens import scheme_of, token_for

SOURCES = "hf://, ms://, gs://, pvc:// or file://"
FILE_SPLIT = "train"
"""The one split that files have."""
_CORRECT_URI = "Correct spec.dataset.uri."


def open_rows(dataset: RunDataset, cache: Path, secret_of: str | None = None) -> Iterator[Row]:
    """The rows of a dataset, file after file, in the order of the files' names.

    A file is fetched (below the folder `cache`, where it is not local) only when its first row is asked for.
    `secret_of`: the URI that dataset.secretRef belongs to, where that is another than the dataset's own.

    Raises:
        InvalidConfig: no such file, repository, configuration or split.
        DataInvalid: there is no row, or a file cannot be read; names file and line.
        AccessDenied, StorageUnavailable, HubUnavailable: the source refuses or does not answer.
    """
    scheme = scheme_of(dataset.uri)
    token = token_for(dataset.uri, secret_of or dataset.uri)
    if scheme == "hf":
        from gemmatune_trainer.data.hub import hub_rows

        rows = hub_rows(dataset, cache / "hub", token)
    elif scheme == "ms":
        from gemmatune_trainer.data.modelscope import modelscope_rows

        rows = modelscope_rows(dataset, cache / "data", token)
    elif scheme in ("file", "pvc", "gs"):
        _check_file_options(dataset)
        in_blocks = dataset.limit is not None
        rows = _bucket_rows(dataset.uri, cache / "data", in_blocks) if scheme == "gs" else _local_rows(dataset.uri)
    else:
        raise InvalidConfig(f"dataset.uri: {dataset.uri!r} cannot be read", f"Use {SOURCES}.")
    with naming(f"dataset.uri: {dataset.uri}"):
        yield from _at_least_one(rows, dataset.uri)


def evaluation_source(dataset: RunDataset, cache: Path) -> RunDataset | None:
    """The dataset of dataset.evalUri, in the format of the rows to train on; None where there is none.

    Of a repository it is the split validation, test or train, the first that there is and that is not trained on.
    `limit` is for the rows to train on; configuration and revision belong to one repository.

    Raises:
        TrainerError: as open_rows.
    """
    if dataset.eval_uri is None:
        return None
    same = dataset.eval_uri.rstrip("/") == dataset.uri.rstrip("/")
    changes = {"uri": dataset.eval_uri, "limit": None, "split": FILE_SPLIT}
    own = {} if same else {"config": None, "revision": None}
    found = dataset.model_copy(update={**changes, **own})
    token = token_for(found.uri, dataset.uri)
    used = dataset.split if same else None
    if scheme_of(found.uri) == "hf":
        from gemmatune_trainer.data import hub

        return found.model_copy(update={"split": hub.evaluation_split(found, used, cache / "hub", token)})
    if scheme_of(found.uri) == "ms":
        from gemmatune_trainer.data import modelscope

        return found.model_copy(update={"split": modelscope.evaluation_split(found, used, token)})
    return found


def _at_least_one(rows: Iterator[Row], uri: str) -> Iterator[Row]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataInvalid(f"{uri} holds no row", "Correct spec.dataset.uri, or fill the file.")


def _check_file_options(dataset: RunDataset) -> None:
    """What only repositories of the hub have is refused for files."""
    if dataset.split != FILE_SPLIT:
        raise InvalidConfig(
            f"dataset.split: {dataset.uri} is made of files, which have the split {FILE_SPLIT} only, "
            f"found {dataset.split!r}",
            "Remove split, and name the files of the split in spec.dataset.uri.",
        )
    for name in ("config", "revision"):
        if (value := getattr(dataset, name)) is not None:
            raise InvalidConfig(
                f"dataset.{name}: only repositories of the hub have one, found {value!r} beside {dataset.uri}",
                f"Remove {name}.",
            )


def _check_found(names: list[str], uri: str) -> list[str]:
    """The names sorted; refused where there is none, or one that cannot be read."""
    if not names:
        raise InvalidConfig(f"dataset.uri: {uri} names no file that can be read", f"{_CORRECT_URI} Files: {SUPPORTED}.")
    unknown = sorted(name for name in names if reader_of(name) is None)
    if unknown:
        raise DataInvalid(
            f"dataset.uri: {uri} takes in {unknown[0]}, and no format is known by this ending", f"Use {SUPPORTED}."
        )
    return sorted(names)


def _local_rows(uri: str) -> Iterator[Row]:
    path = _local_path(uri)
    if Path(path).is_file():
        yield from _beside(str(Path(path).parent), read(Path(path), PurePosixPath(path).name))
        return
    if not Path(path).is_dir() and not WILDCARDS.search(path):
        raise InvalidConfig(f"dataset.uri: {uri} does not exist", _CORRECT_URI)
    pattern = Pattern(path, "") if Path(path).is_dir() else Pattern.of(path)
    base = Path(pattern.base or "/")
    found = [name for name in _files_below(base, pattern) if pattern.matches(name)]
    for name in _check_found(found, uri):
        yield from _beside(str((base / name).parent), read(base / name, name))


def _beside(folder: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of a file, with its folder."""
    return (replace(row, folder=folder) for row in rows)


def _local_path(uri: str) -> str:
    """The path of a file:// or pvc:// URI; it may hold wildcards, and end with `/`."""
    if scheme_of(uri) == "pvc":
        return claims.path_of(uri)
    path = unquote(uri.removeprefix("file://").removeprefix("localhost"))
    if not path.startswith("/"):
        raise InvalidConfig(f"dataset.uri: {uri} is no absolute path", "Use file:///PATH.")
    return path


def _files_below(base: Path, pattern: Pattern) -> Iterator[str]:
    """Names of files relative to `base`, only as deep as the pattern reaches; hidden ones left out."""
    depth = None if "**" in pattern.rest else pattern.rest.count("/")
    for folder, folders, files in os.walk(base):
        relative = Path(folder).relative_to(base)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if depth is not None and len(relative.parts) >= depth:
            folders.clear()
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))


def _bucket_rows(uri: str, cache: Path, in_blocks: bool) -> Iterator[Row]:
    """Rows of a bucket's objects; `in_blocks` fetches only the blocks that they lie in."""
    bucket, _, path = uri.removeprefix("gs://").partition("/")
    if not bucket:
        raise InvalidConfig(f"dataset.uri: {uri} names no bucket", "Use gs://BUCKET/PATH.")
    pattern = Pattern.of(path)
    storage = open_storage(f"gs://{bucket}/{pattern.base}".rstrip("/"))
    wild = WILDCARDS.search(pattern.rest) is not None
    items = {item.name: item for item in storage.list("" if wild else pattern.rest)}
    if pattern.rest and not wild and pattern.rest not in items:
        # No such object: the path may be that of a folder.
        pattern = Pattern(path, "")
        storage = open_storage(f"gs://{bucket}/{path}")
        items = {item.name: item for item in storage.list()}
    for name in _check_found([name for name in items if pattern.matches(name)], uri):
        folder = storage.locate(name).rpartition("/")[0]
        yield from _beside(folder, _bucket_file(storage, items[name], cache, in_blocks))


def _bucket_file(storage: Storage, item: StoredObject, cache: Path, in_blocks: bool) -> Iterator[Row]:
    try:
        if in_blocks:
            yield from read(blocks.opener(item.size, partial(storage.read_part, item)), item.name)
            return
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="object-", dir=cache) as folder:
            local = Path(folder) / "object"
            storage.download({item.name: local})
            yield from read(local, item.name)
    except ObjectMissing as error:
        raise InvalidConfig(
            f"{storage.locate(item.name)} was deleted or changed while it was read", _CORRECT_URI
        ) from error
