"""Rows of a datasets repository (hf://ORG/NAME): its files by configuration and split, read like any other file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from gemmatune_api.names import ENV_DATASET_TOKEN
from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.data.readers import SUPPORTED, read, reader_of
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import AccessDenied, DataInvalid, HubUnavailable, InvalidConfig, TrainerError, text_of

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_MODEL_TOKEN = "HF_TOKEN"
EVALUATION_SPLITS = ("validation", "test", "train")
"""The splits of a repository that are evaluated on, the first that there is."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at a fixed commit."""

    repository: str
    commit: str
    path: str

    @classmethod
    def of(cls, uri: str) -> HubFile:
        """Reads `hf://datasets/ORG/NAME@COMMIT/PATH`, the form in which the datasets library names files.

        Raises:
            DataInvalid: the file lies elsewhere.
        """
        if not uri.startswith("hf://datasets/") or "@" not in uri:
            raise DataInvalid(f"the repository names {uri}, which lies outside it", "Use data inside the repository.")
        place, _, path = uri.removeprefix("hf://datasets/").partition("@")
        commit, _, path = path.partition("/")
        return cls(place, commit, path)


def token() -> str | bool:
    """The hub token for data; False where there is none (then none of the user's own is sent either)."""
    return os.environ.get(ENV_DATASET_TOKEN) or os.environ.get(_MODEL_TOKEN) or False


def hub_rows(dataset: RunDataset, cache: Path) -> Iterator[Row]:
    """The rows of one split of one configuration; each file is downloaded when its first row is asked for.

    Raises:
        AccessDenied: the repository is gated or private, or does not exist.
        InvalidConfig: no such revision, configuration or split; the message lists those that there are.
        DataInvalid: the split has files of a kind that is not read.
        HubUnavailable: the hub does not answer.
    """
    from huggingface_hub import hf_hub_download

    files = [HubFile.of(uri) for uri in _files(dataset, cache)]
    unknown = next((file.path for file in files if reader_of(file.path) is None), None)
    if unknown is not None:
        raise DataInvalid(f"{dataset.uri}: {unknown} is of a kind that is not read", f"Use data in {SUPPORTED}.")
    for file in files:
        local = hf_hub_download(
            file.repository,
            file.path,
            repo_type="dataset",
            revision=file.commit,
            cache_dir=cache,
            token=token(),
            library_name="gemmatune",
        )
        yield from read(Path(local), file.path)


def evaluation_split(dataset: RunDataset, used: str | None, cache: Path) -> str:
    """The split of a repository to evaluate on; `used` is the one that is trained on, where it is the same repository.

    Raises:
        InvalidConfig: it has no other split.
        AccessDenied, DataInvalid, HubUnavailable: as hub_rows.
    """
    splits = _splits(dataset, cache)
    found = next((split for split in EVALUATION_SPLITS if split in splits and split != used), None)
    if found is None:
        raise InvalidConfig(
            f"dataset.evalUri: {dataset.uri} has the splits {_names(splits)}, none of them to evaluate on",
            f"Name a repository with a split {' or '.join(EVALUATION_SPLITS)}, or use dataset.evalFraction.",
        )
    return found


def _names(splits: Mapping[str, object]) -> str:
    return ", ".join(map(repr, splits)) or "none"


def _files(dataset: RunDataset, cache: Path) -> list[str]:
    """The files of the split."""
    splits = _splits(dataset, cache)
    if dataset.split not in splits:
        raise InvalidConfig(
            f"dataset.split: {dataset.uri} has no split {dataset.split!r}, it has {_names(splits)}",
            "Correct dataset.split.",
        )
    return splits[dataset.split]


def _splits(dataset: RunDataset, cache: Path) -> dict[str, list[str]]:
    """Files by split, as the datasets library finds them (README.md's configurations, or names of files)."""
    import datasets
    from datasets.data_files import EmptyDatasetError

    name = dataset.uri.removeprefix("hf://").removeprefix("datasets/").strip("/")
    commit = _commit(name, dataset)
    # The hub's dataset viewer would only add checksums and column types, which nobody asks for here.
    datasets.config.USE_PARQUET_EXPORT = False
    download = datasets.DownloadConfig(cache_dir=cache / "downloads", token=token(), disable_tqdm=True)
    try:
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{name}",
            name=dataset.config,
            revision=commit,
            cache_dir=str(cache / "builders"),
            download_config=download,
            token=token(),
        )
    except datasets.exceptions.DatasetNotFoundError as error:  # its description is public, its files are not
        who = "the token may not read it" if token() else "there is no token"
        raise AccessDenied(
            f"dataset.uri: {dataset.uri} is gated, and {who}",
            f"Accept the conditions on the page of {name}, and set dataset.secretRef to a token of that account.",
        ) from error
    except ConnectionError as error:
        raise HubUnavailable(f"{dataset.uri}: {error}") from error
    except (datasets.exceptions.DataFilesNotFoundError, EmptyDatasetError) as error:
        raise DataInvalid(f"{dataset.uri} holds no data file that can be read: {error}", f"Use {SUPPORTED}.") from error
    except ValueError as error:  # unknown or missing configuration: the message lists those that there are
        told = " ".join(str(error).partition("Example of usage")[0].split())
        raise InvalidConfig(f"dataset.config: {dataset.uri}: {told}", "Correct dataset.config.") from error
    return {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}


def _commit(name: str, dataset: RunDataset) -> str:
    """The commit of the revision, which all files are then read at."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = HfApi(token=token(), library_name="gemmatune").dataset_info(name, revision=dataset.revision).sha
    except HfHubHTTPError as error:
        raise _refused(error, dataset) from error
    if not found:
        raise HubUnavailable(f"the hub names no commit of {name}")
    return found


def _refused(error: HfHubHTTPError, dataset: RunDataset) -> TrainerError:
    """What the hub's answer to the question for a repository means."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return InvalidConfig(
            f"dataset.revision: {dataset.uri} has no revision {dataset.revision!r}", "Name a branch, tag or commit."
        )
    if isinstance(error, RepositoryNotFoundError):
        return AccessDenied(
            f"dataset.uri: {dataset.uri} does not exist, or the token may not see it",
            "Correct the name, or set dataset.secretRef to a token that may read the repository.",
        )
    if error.response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AccessDenied(
            f"dataset.uri: the hub refuses the token for {dataset.uri}: {error.server_message or error}",
            "Put a valid token into the Secret of dataset.secretRef.",
        )
    return HubUnavailable(f"dataset.uri: the hub does not answer for {dataset.uri}: {text_of(error)}")
