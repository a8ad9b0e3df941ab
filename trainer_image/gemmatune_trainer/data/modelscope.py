"""Rows of a dataset repository on ModelScope (ms://ORG/NAME): its files by configuration and split."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.data.pattern import Pattern
from gemmatune_trainer.data.readers import SUPPORTED, read, reader_of
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.data.splits import chosen_split, split_of_evaluation
from gemmatune_trainer.errors import DataInvalid, InvalidConfig
from gemmatune_trainer.modelscope import HubFile, Repository

_CARD = "README.md"
_CARD_BYTES = 1 << 20
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in a path that tell which split a file belongs to, where the card names none."""

Splits = dict[str, list[HubFile]]


def modelscope_rows(dataset: RunDataset, cache: Path, token: str | None) -> Iterator[Row]:
    """The rows of one split of one configuration, file after file.

    With `limit` a file is read in blocks as its rows are asked for; else it is downloaded whole.

    Raises:
        AccessDenied: the repository may not be read, or does not exist.
        InvalidConfig: no such revision, configuration or split; the message lists those that there are.
        DataInvalid: the split has files of a kind that is not read.
        HubUnavailable: the hub does not answer.
    """
    repository = Repository("datasets", dataset.uri, dataset.revision, token)
    files = chosen_split(_splits(repository, dataset), dataset)
    unknown = next((file.path for file in files if reader_of(file.path) is None), None)
    if unknown is not None:
        raise DataInvalid(f"{dataset.uri}: {unknown} is of a kind that is not read", f"Use data in {SUPPORTED}.")
    cache.mkdir(parents=True, exist_ok=True)
    for file in files:
        if dataset.limit is not None:
            yield from read(repository.opener(file), file.path)
            continue
        with tempfile.TemporaryDirectory(prefix="object-", dir=cache) as folder:
            repository.download([file], Path(folder))
            yield from read(Path(folder) / file.path, file.path)


def evaluation_split(dataset: RunDataset, used: str | None, token: str | None) -> str:
    """The split of a repository to evaluate on; see `splits.split_of_evaluation`.

    Raises:
        TrainerError: as modelscope_rows.
    """
    repository = Repository("datasets", dataset.uri, dataset.revision, token)
    return split_of_evaluation(_splits(repository, dataset), dataset, used)


def _splits(repository: Repository, dataset: RunDataset) -> Splits:
    """Files by split: as the card's `configs` say, else by words in the files' names, else all of them `train`."""
    files = repository.files()
    configurations = _configurations(_card(repository, files))
    if configurations:
        return _configured(configurations, files, dataset)
    if dataset.config is not None:
        raise InvalidConfig(
            f"dataset.config: {dataset.uri} has no configurations, found {dataset.config!r}", "Remove dataset.config."
        )
    data = [file for file in files if reader_of(file.path) is not None and not _is_hidden(file.path)]
    if not data:
        raise DataInvalid(f"{dataset.uri} holds no data file that can be read", f"Use {SUPPORTED}.")
    by_words: Splits = {}
    for file in data:
        if (split := _split_by_words(file.path)) is not None:
            by_words.setdefault(split, []).append(file)
    return by_words or {"train": data}


def _is_hidden(path: str) -> bool:
    """Hidden files, and the description that ModelScope puts into a repository."""
    return any(part.startswith(".") for part in path.split("/")) or path in ("dataset_infos.json", "configuration.json")


def _split_by_words(path: str) -> str | None:
    words = re.split(r"[^a-z]+", path.lower())
    return next((split for split, known in _WORDS.items() if any(word in known for word in words)), None)


def _card(repository: Repository, files: Iterable[HubFile]) -> Mapping[str, Any]:
    """The front matter of README.md; empty where there is none that can be read."""
    card = next((file for file in files if file.path == _CARD and file.size), None)
    if card is None:
        return {}
    text = repository.read(card, 0, min(card.size, _CARD_BYTES)).decode("utf-8", errors="replace")
    match = _FRONT_MATTER.match(text)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _configurations(card: Mapping[str, Any]) -> dict[str, Any]:
    """data_files by configuration, in the card's order."""
    entries = card.get("configs")
    found = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return {str(entry.get("config_name", "default")): entry.get("data_files") for entry in found}


def _configured(configurations: Mapping[str, Any], files: Iterable[HubFile], dataset: RunDataset) -> Splits:
    name = dataset.config
    if name is None:
        name = next(iter(configurations)) if len(configurations) == 1 else "default"
    if name not in configurations:
        known = ", ".join(map(repr, configurations))
        found = "needs one of" if dataset.config is None else f"has no {dataset.config!r}, it has"
        raise InvalidConfig(f"dataset.config: {dataset.uri} {found} {known}", "Correct dataset.config.")
    splits: Splits = {}
    for split, pattern in _patterns(configurations[name]):
        matched = [file for file in files if pattern.covers(file.path)]
        if not matched:
            raise DataInvalid(
                f"{dataset.uri}: its card names {pattern.text}, and no file is there", "Correct the card."
            )
        splits.setdefault(split, []).extend(matched)
    return splits


def _patterns(data_files: Any) -> Iterator[tuple[str, Pattern]]:
    """Split and path pattern of every entry of data_files, in all the forms that a card may have."""
    if isinstance(data_files, str):
        yield "train", Pattern.of(data_files)
    elif isinstance(data_files, dict):
        for split, paths in data_files.items():
            yield from ((str(split), pattern) for _, pattern in _patterns(paths))
    elif isinstance(data_files, list):
        for entry in data_files:
            if isinstance(entry, dict):
                yield from ((str(entry.get("split", "train")), found) for _, found in _patterns(entry.get("path")))
            else:
                yield from _patterns(entry)
