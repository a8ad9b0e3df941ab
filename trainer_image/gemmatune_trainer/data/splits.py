"""Splits of a dataset repository, by whatever hub: the one that is read, and the one to evaluate on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.errors import InvalidConfig

File = TypeVar("File")

EVALUATION_SPLITS = ("validation", "test", "train")
"""The splits of a repository that are evaluated on, the first that there is."""


def chosen_split(splits: Mapping[str, Sequence[File]], dataset: RunDataset) -> Sequence[File]:
    """The files of dataset.split.

    Raises:
        InvalidConfig: there is no such split.
    """
    if dataset.split not in splits:
        raise InvalidConfig(
            f"dataset.split: {dataset.uri} has no split {dataset.split!r}, it has {_names(splits)}",
            "Correct dataset.split.",
        )
    return splits[dataset.split]


def split_of_evaluation(splits: Mapping[str, object], dataset: RunDataset, used: str | None) -> str:
    """The split to evaluate on; `used` is the one that is trained on, where it is the same repository.

    Raises:
        InvalidConfig: the repository has no other split.
    """
    found = next((split for split in EVALUATION_SPLITS if split in splits and split != used), None)
    if found is None:
        raise InvalidConfig(
            f"dataset.evalUri: {dataset.uri} has the splits {_names(splits)}, none of them to evaluate on",
            f"Name a repository with a split {' or '.join(EVALUATION_SPLITS)}, or use dataset.evalFraction.",
        )
    return found


def _names(splits: Mapping[str, object]) -> str:
    return ", ".join(map(repr, splits)) or "none"
