"""Rows of a datasets repository (hf://ORG/NAME): its files by configuration and split, read like any other file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.data.readers import SUPPORTED, Opener, read, reader_of
from gemmatune_trainer.data.rows import Row
from gemmatune_trainer.data.splits import chosen_split, split_of_evaluation
from gemmatune_trainer.errors import AccessDenied, DataInvalid, HubUnavailable, InvalidConfig, TrainerError, text_of

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_BLOCK_BYTES = 1 << 20


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

    @property
    def place(self) -> str:
        """The file as the hub's file system names it."""
        return f"datasets/{self.repository}@{self.commit}/{self.path}"


def hub_rows(dataset: RunDataset, cache: Path, token: str | None) -> Iterator[Row]:
    """The rows of one split of one configuration, file after file.

    With `limit` a file is read in blocks as its rows are asked for; else it is downloaded whole.

    Raises:
        AccessDenied: the repository is gated or private, or does not exist.
        InvalidConfig: no such revision, configuration or split; the message lists those that there are.
        DataInvalid: the split has files of a kind that is not read.
        HubUnavailable: the hub does not answer.
    """
    files = [HubFile.of(uri) for uri in chosen_split(_splits(dataset, cache, token), dataset)]
    unknown = next((file.path for file in files if reader_of(file.path) is None), None)
    if unknown is not None:
        raise DataInvalid(f"{dataset.uri}: {unknown} is of a kind that is not read", f"Use data in {SUPPORTED}.")
    source = _blocks(token) if dataset.limit is not None else _whole(cache, token)
    for file in files:
        yield from read(source(file), file.path)


def _blocks(token: str | None) -> Callable[[HubFile], Opener]:
    """Files of which only the blocks that are read are fetched."""
    from huggingface_hub import HfFileSystem

    system = HfFileSystem(token=token or False, skip_instance_cache=True)
    return lambda file: partial(system.open, file.place, "rb", block_size=_BLOCK_BYTES)


def _whole(cache: Path, token: str | None) -> Callable[[HubFile], Path]:
    """Files that are downloaded when they are asked for."""
    from huggingface_hub import hf_hub_download

    def download(file: HubFile) -> Path:
        found = hf_hub_download(
            file.repository,
            file.path,
            repo_type="dataset",
            revision=file.commit,
            cache_dir=cache,
            token=token or False,
            library_name="gemmatune",
        )
        return Path(found)

    return download


def evaluation_split(dataset: RunDataset, used: str | None, cache: Path, token: str | None) -> str:
    """The split of a repository to evaluate on; see `splits.split_of_evaluation`.

    Raises:
        InvalidConfig: it has no other split.
        AccessDenied, DataInvalid, HubUnavailable: as hub_rows.
    """
    return split_of_evaluation(_splits(dataset, cache, token), dataset, used)


def _splits(dataset: RunDataset, cache: Path, token: str | None) -> dict[str, list[str]]:
    """Files by split, as the datasets library finds them (README.md's configurations, or names of files)."""
    import datasets
    from datasets.data_files import EmptyDatasetError

    name = dataset.uri.removeprefix("hf://").removeprefix("datasets/").strip("/")
    commit = _commit(name, dataset, token)
    # The hub's dataset viewer would only add checksums and column types, which nobody asks for here.
    datasets.config.USE_PARQUET_EXPORT = False
    download = datasets.DownloadConfig(cache_dir=cache / "downloads", token=token or False, disable_tqdm=True)
    try:
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{name}",
            name=dataset.config,
            revision=commit,
            cache_dir=str(cache / "builders"),
            download_config=download,
            token=token or False,
        )
    except datasets.exceptions.DatasetNotFoundError as error:  # its description is public, its files are not
        who = "the token may not read it" if token else "there is no token"
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


def _commit(name: str, dataset: RunDataset, token: str | None) -> str:
    """The commit of the revision, which all files are then read at."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = HfApi(token=token or False, library_name="gemmatune").dataset_info(name, revision=dataset.revision).sha
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
