"""What a hub has of a model at one revision, file by file: names, sizes, digests, and the bytes."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gemmatune_api.runconfig import RunModel
from gemmatune_trainer.tokens import model_token

if TYPE_CHECKING:
    from gemmatune_trainer.modelscope import HubFile as ModelScopeFile
    from gemmatune_trainer.modelscope import Repository

SMALL = ("*.json", "tokenizer.model", "*.jinja")
WEIGHTS = "*.safetensors"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as its hub describes it: `digest` is `sha256:…` or git's `git:…` of its content, "" where none is told."""

    name: str
    size: int
    digest: str


def is_hub(uri: str) -> bool:
    """Whether a model comes from a hub, and not from a bucket or a file system."""
    return urlsplit(uri).scheme in ("hf", "ms")


def hub_name(uri: str) -> str:
    """ORG/NAME of an hf:// or ms:// URI."""
    return uri.partition("://")[2].strip("/")


def wanted(name: str, weights: bool = True) -> bool:
    """Whether a file of a repository's root belongs to the model: safetensors, JSON, tokenizer and template."""
    return "/" not in name and any(fnmatch.fnmatch(name, kind) for kind in (*SMALL, *((WEIGHTS,) if weights else ())))


def files(model: RunModel, revision: str) -> list[HubFile]:
    """The model's files at a revision as `models.fetch` names it.

    Raises:
        LookupError: the hub has another one by now.
    """
    if model.uri.startswith("ms://"):
        there = modelscope_files(modelscope(model))
        if revision_of(there) != revision:
            raise LookupError(f"{model.uri} has another revision by now")
        return [HubFile(file.path, file.size, f"sha256:{file.sha256}" if file.sha256 else "") for file in there]
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi(token=model_token(model.uri) or False).list_repo_tree(hub_name(model.uri), revision=revision)
    return [
        HubFile(entry.path, entry.size, f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}")
        for entry in entries
        if isinstance(entry, RepoFile) and wanted(entry.path)
    ]


def download(model: RunModel, revision: str, name: str, folder: Path) -> Path:
    """One of the files, written into a folder."""
    if model.uri.startswith("ms://"):
        repository = modelscope(model)
        repository.download([file for file in repository.files() if file.path == name], folder)
    else:
        from huggingface_hub import hf_hub_download

        token = model_token(model.uri) or False
        hf_hub_download(hub_name(model.uri), name, revision=revision, token=token, local_dir=folder)
    return folder / name


def modelscope(model: RunModel) -> Repository:
    """The repository of an ms:// model."""
    from gemmatune_trainer.modelscope import Repository

    return Repository("models", model.uri, model.revision, model_token(model.uri))


def modelscope_files(repository: Repository) -> list[ModelScopeFile]:
    """The model's files, by name."""
    return [file for file in repository.files() if wanted(file.path)]


def revision_of(found: Sequence[ModelScopeFile]) -> str:
    """ModelScope names no commit: the hash of its listing stands for one."""
    return listing_hash("".join(f"{file.path} {file.size} {file.sha256}\n" for file in found))


def listing_hash(listing: str) -> str:
    """The revision of files that have none of their own."""
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
