"""Where the base model comes from: files of a hub, a bucket or a directory, its tokenizer and its catalog entry."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemmatune_api import catalog
from gemmatune_api.names import DEFAULT_CACHE, ENV_CACHE
from gemmatune_api.runconfig import RunModel
from gemmatune_trainer import claims
from gemmatune_trainer.data.tokenize import TOKENIZER_FILE, RowTokenizer
from gemmatune_trainer.errors import HubUnavailable, InvalidConfig, naming
from gemmatune_trainer.logs import log
from gemmatune_trainer.storage import local_path, open_storage
from gemmatune_trainer.tokens import model_token

_SMALL = ("*.json", "tokenizer.model", "*.jinja")
_WEIGHTS = "*.safetensors"
_HASHED_BYTES = 1 << 20


def cache_folder(name: str) -> Path:
    """A folder of the trainer's scratch directory (GEMMATUNE_CACHE, in a pod /cache)."""
    folder = Path(os.environ.get(ENV_CACHE) or DEFAULT_CACHE) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class ModelFiles:
    """A model's files in a local folder; `revision` is a hub's commit, or a hash of the files elsewhere."""

    uri: str
    revision: str
    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json. Raises InvalidConfig."""
        try:
            found = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InvalidConfig(f"{self.uri} has no config.json", "Name a model in Hugging Face's format.") from error
        except ValueError as error:
            raise InvalidConfig(f"config.json of {self.uri} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise InvalidConfig(f"config.json of {self.uri} is no JSON object")
        return found

    @cached_property
    def model(self) -> catalog.GemmaModel:
        """The catalog's entry. Raises InvalidConfig for a model that is no Gemma."""
        found = catalog.by_config(self.config)
        if found is None:
            family = self.config.get("model_type")
            raise InvalidConfig(
                f"model.uri: {self.uri} has model_type {family!r}, which is no Gemma",
                "Name a model of the Gemma family.",
            )
        return found

    @cached_property
    def tokenizer(self) -> RowTokenizer:
        """The tokenizer, which is loaded once. Raises InvalidConfig where there is none, or it is no Gemma's."""
        path = self.folder / TOKENIZER_FILE
        if not path.is_file():
            raise InvalidConfig(f"model.uri: {self.uri} has no {TOKENIZER_FILE}", "Copy the published one beside it.")
        return RowTokenizer.load(path, self.model.rules)

    @property
    def published_name(self) -> tuple[str, str | None]:
        """What an adapter names as its base: a hub's id and commit, else the hub id of the folder's name, else the URI.

        Never a guess by shape: a tuned copy of a model has the same one.
        """
        if self.uri.startswith("hf://"):
            return hub_name(self.uri), self.revision
        folder = self.uri.rstrip("/").rsplit("/", 1)[-1].lower()
        named = catalog.by_uri(self.uri)
        for hub_id in named.hub_ids if named else ():
            if hub_id.lower().endswith(f"/{folder}"):
                return hub_id, None
        return self.uri, None


def fetch(model: RunModel, weights: bool, revision: str | None = None) -> ModelFiles:
    """The model's files, downloaded once into the cache where they are not local: safetensors and JSON only.

    `weights` False leaves the safetensors out. `revision` is the one that prepare has resolved.

    Raises:
        InvalidConfig: the files changed since prepare, or are no model.
        AccessDenied, HubUnavailable, StorageUnavailable: they cannot be read.
    """
    scheme = urlsplit(model.uri).scheme
    with naming(f"model.uri: {model.uri}"):
        if scheme == "hf":
            return _fetch_hub(model, weights, revision)
        if scheme == "kaggle":
            return _fetch_kaggle(model, weights, revision)
        if scheme == "ms":
            found = _fetch_modelscope(model, weights)
        elif scheme in ("file", "pvc"):
            found = _fetch_folder(model)
        else:
            found = _fetch_bucket(model, weights)
    if revision is not None and found.revision != revision:
        raise InvalidConfig(
            f"model.uri: the files of {model.uri} changed since the run was prepared",
            "Restore them, or create a new resource.",
        )
    return found


def hub_name(uri: str) -> str:
    """ORG/NAME of an hf:// URI."""
    return uri.removeprefix("hf://").strip("/")


def _fetch_hub(model: RunModel, weights: bool, revision: str | None) -> ModelFiles:
    from huggingface_hub import HfApi, snapshot_download

    token = model_token(model.uri) or False
    name = hub_name(model.uri)
    commit = revision or HfApi(token=token).model_info(name, revision=model.revision).sha
    if not commit:
        raise HubUnavailable(f"the hub names no commit of {name}")
    patterns = [*_SMALL, *([_WEIGHTS] if weights else [])]
    folder = snapshot_download(
        name,
        revision=commit,
        token=token,
        allow_patterns=patterns,
        cache_dir=cache_folder("hub"),
        library_name="gemmatune",
    )
    return _checked(ModelFiles(model.uri, commit, Path(folder)), weights)


def _fetch_folder(model: RunModel) -> ModelFiles:
    folder = Path(claims.path_of(model.uri)) if model.uri.startswith("pvc://") else local_path(model.uri)
    if not folder.is_dir():
        raise InvalidConfig(f"model.uri: {folder} is no directory", "Name the directory that holds config.json.")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and _wanted(path.name, True)):
        with path.open("rb") as file:  # ends of large files: a rewritten one differs there, or in its size
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(_HASHED_BYTES))
            file.seek(max(0, path.stat().st_size - _HASHED_BYTES))
            digest.update(file.read())
    return _checked(ModelFiles(model.uri, digest.hexdigest()[:16], folder), True)


def _fetch_bucket(model: RunModel, weights: bool) -> ModelFiles:
    storage = open_storage(model.uri)
    objects = [item for item in storage.list() if "/" not in item.name and _wanted(item.name, True)]
    listing = "".join(f"{item.name} {item.size} {item.generation}\n" for item in objects)
    wanted = [item.name for item in objects if _wanted(item.name, weights)]
    return _downloaded(
        model, weights, listing, lambda folder: storage.download({name: folder / name for name in wanted})
    )


def _fetch_modelscope(model: RunModel, weights: bool) -> ModelFiles:
    from gemmatune_trainer.modelscope import Repository

    repository = Repository("models", model.uri, model.revision, model_token(model.uri))
    files = [file for file in repository.files() if "/" not in file.path and _wanted(file.path, True)]
    listing = "".join(f"{file.path} {file.size} {file.sha256}\n" for file in files)
    wanted = [file for file in files if _wanted(file.path, weights)]
    return _downloaded(model, weights, listing, lambda folder: repository.download(wanted, folder))


def _fetch_kaggle(model: RunModel, weights: bool, revision: str | None) -> ModelFiles:
    from gemmatune_trainer.kaggle import Variation

    variation = Variation(model.uri, revision or model.revision)
    version = variation.version()
    files = [file for file in variation.files() if "/" not in file.path and _wanted(file.path, weights)]
    if not files:
        return _cached(model, weights, version, None)
    return _cached(model, weights, version, lambda folder: variation.download(files, folder))


def _downloaded(model: RunModel, weights: bool, listing: str, download: Callable[[Path], None]) -> ModelFiles:
    """The model's folder in the cache; its revision is that of the listing."""
    revision = hashlib.sha256(listing.encode()).hexdigest()[:16]
    return _cached(model, weights, revision, download if listing else None)


def _cached(model: RunModel, weights: bool, revision: str, download: Callable[[Path], None] | None) -> ModelFiles:
    """The model's folder in the cache, filled by `download` where it is not there; None: there is nothing to fetch."""
    folder = cache_folder("models") / hashlib.sha256(f"{model.uri} {revision} {weights}".encode()).hexdigest()[:16]
    if not folder.is_dir() and download is not None:
        temporary = folder.with_suffix(f".{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        log.info("downloading the model", uri=model.uri, weights=weights)
        download(temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary, ignore_errors=True)
    return _checked(ModelFiles(model.uri, revision, folder), weights)


def _wanted(name: str, weights: bool) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in (*_SMALL, *((_WEIGHTS,) if weights else ())))


def _checked(files: ModelFiles, weights: bool) -> ModelFiles:
    if weights and not any(files.folder.glob(_WEIGHTS)):
        raise InvalidConfig(
            f"model.uri: {files.uri} holds no .safetensors file",
            "Convert the weights to safetensors (others are refused).",
        )
    _ = files.model
    return files
