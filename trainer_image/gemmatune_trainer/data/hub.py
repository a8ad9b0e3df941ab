"""Rows of a datasets repository (hf://ORG/NAME): its files by configuration and split, read like any other file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gemmatune_api.names import ENV_DATASET_TOKEN
from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.data.readers import SUPPORTED, read, reader_of
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.errors import AccessDenied, DataInvalid, HubUnavailable, InvalidConfig

_MODEL_TOKEN = "HF_TOKEN"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at a fixed commit."""

    repository: str
    commit: str
    path: str

    @classmethod
    def of(cls, uri: str) -> HubFile:
        """Reads `hf://datasets/ORG/NAME@COMMIT/PATH`, the form in which the datasets library names files."""
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


def _files(dataset: RunDataset, cache: Path) -> list[str]:
    """The files of the split, as the datasets library finds them (README.md's configurations, or names of files)."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = dataset.uri.removeprefix("hf://").removeprefix("datasets/").strip("/")
    try:
        commit = HfApi(token=token(), library_name="gemmatune").dataset_info(name, revision=dataset.revision).sha
    except GatedRepoError as error:
        raise AccessDenied(
            f"dataset.uri: {dataset.uri} is gated, and the token may not read it",
            f"Accept the conditions on the page of {name} with the account of the token in dataset.secretRef.",
        ) from error
    except RepositoryNotFoundError as error:
        raise AccessDenied(
            f"dataset.uri: {dataset.uri} does not exist, or the token may not see it",
            "Correct the name, or set dataset.secretRef to a token that may read the repository.",
        ) from error
    except RevisionNotFoundError as error:
        raise InvalidConfig(
            f"dataset.revision: {dataset.uri} has no revision {dataset.revision!r}", "Name a branch, tag or commit."
        ) from error
    if not commit:
        raise HubUnavailable(f"the hub names no commit of {name}")
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
    except (datasets.exceptions.DataFilesNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataInvalid(f"{dataset.uri} holds no data file that can be read: {error}", f"Use {SUPPORTED}.") from error
    except ValueError as error:  # unknown or missing configuration: the message lists those that there are
        raise InvalidConfig(f"dataset.config: {dataset.uri}: {error}", "Correct dataset.config.") from error
    splits = builder.config.data_files or {}
    if dataset.split not in splits:
        known = ", ".join(map(repr, splits)) or "none"
        raise InvalidConfig(
            f"dataset.split: {dataset.uri} has no split {dataset.split!r}, it has {known}",
            "Correct dataset.split.",
        )
    return [str(uri) for uri in splits[dataset.split]]
