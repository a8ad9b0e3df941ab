"""Where the base model comes from: files of a hub, a bucket or a directory, its tokenizer and its catalog entry."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemmatune_api import catalog
from gemmatune_api.names import DEFAULT_CACHE, ENV_CACHE
from gemmatune_api.runconfig import RunModel
from gemmatune_trainer import claims, hubs
from gemmatune_trainer.data.tokenize import TOKENIZER_FILE, RowTokenizer
from gemmatune_trainer.errors import HubUnavailable, InvalidConfig, explain, naming, text_of
from gemmatune_trainer.hubs import HubFile, hub_name, listing_hash, wanted
from gemmatune_trainer.logs import log
from gemmatune_trainer.modelcache import Copy, Unusable
from gemmatune_trainer.storage import local_path, open_storage
from gemmatune_trainer.stored import Unreadable, parsed
from gemmatune_trainer.tokens import model_token

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
            found = parsed((self.folder / "config.json").read_bytes())
        except FileNotFoundError as error:
            raise InvalidConfig(f"{self.uri} has no config.json", "Name a model in Hugging Face's format.") from error
        except Unreadable as error:
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

    @property
    def image_size(self) -> int:
        """Height and width of the images that the model reads. Raises InvalidConfig for one that reads none."""
        if self.model.vision is None:
            raise InvalidConfig(
                f"model.uri: config.json of {self.uri} describes no vision tower", "Name a PaliGemma model."
            )
        return self.model.vision.image

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
        if weights and revision and (copied := _read_copy(model, revision)) is not None:
            return _checked(copied, weights)
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


def keep_copy(model: RunModel, revision: str) -> str:
    """Makes the site's copy of a hub's model where there is none; what is to say of it, "" where nothing is.

    A copy that cannot be made is told and does not end a preparation: trainers then ask the hub.
    """
    if not _has_copy(model):
        return ""
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="copy-", dir=cache_folder("models")))
    try:
        copy = _copy(model, revision)
        copied = copy.fill(hubs.files(model, revision), partial(hubs.download, model, revision), scratch)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a copy, no run needs it
        return _told(model, "is not made", error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    log.info(
        "copy of the model made" if copied else "copy of the model found",
        copy=copy.uri,
        megabytes=round(sum(file.size for file in copied) / 1e6, 1),
        seconds=round(time.monotonic() - started, 2),
    )
    return ""


def _read_copy(model: RunModel, revision: str) -> ModelFiles | None:
    """The site's copy of a hub's model, downloaded and verified; None where there is none that can be used."""
    if not _has_copy(model):
        return None
    started = time.monotonic()
    name = hashlib.sha256(f"{model.uri} {revision} copy".encode()).hexdigest()[:16]
    try:
        copy = _copy(model, revision)
        folder = _once(cache_folder("models") / name, lambda to: copy.read(to, _described(model, revision)))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a copy, the hub has the model
        _told(model, "is not used", error)
        return None
    log.info("model read from its copy", copy=copy.uri, seconds=round(time.monotonic() - started, 2))
    return ModelFiles(model.uri, revision, folder)


def _has_copy(model: RunModel) -> bool:
    return bool(model.cache) and hubs.is_hub(model.uri)


def _copy(model: RunModel, revision: str) -> Copy:
    return Copy(model.cache or "", f"{urlsplit(model.uri).scheme}/{hub_name(model.uri)}/{revision}")


def _described(model: RunModel, revision: str) -> list[HubFile] | None:
    """The files as the hub has them; None where it does not answer, or does not have the revision any more."""
    try:
        return hubs.files(model, revision)
    except Exception as error:  # noqa: BLE001 - a copy serves where the hub does not
        log.warning("the hub does not tell what a copy must be: its manifest does", uri=model.uri, why=text_of(error))
        return None


def _told(model: RunModel, what: str, error: Exception) -> str:
    known = explain(error)
    why = known.message if known is not None else str(error) if isinstance(error, Unusable) else text_of(error)
    log.warning(f"the copy of the model {what}", cache=model.cache, uri=model.uri, why=why)
    return f"The copy of the model below {model.cache} {what} ({why}); its weights come from the hub."


def _fetch_hub(model: RunModel, weights: bool, revision: str | None) -> ModelFiles:
    from huggingface_hub import HfApi, snapshot_download

    token = model_token(model.uri) or False
    name = hub_name(model.uri)
    commit = revision or HfApi(token=token).model_info(name, revision=model.revision).sha
    if not commit:
        raise HubUnavailable(f"the hub names no commit of {name}")
    patterns = [*hubs.SMALL, *([hubs.WEIGHTS] if weights else [])]
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
    for path in sorted(path for path in folder.iterdir() if path.is_file() and wanted(path.name, True)):
        with path.open("rb") as file:  # ends of large files: a rewritten one differs there, or in its size
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(_HASHED_BYTES))
            file.seek(max(0, path.stat().st_size - _HASHED_BYTES))
            digest.update(file.read())
    return _checked(ModelFiles(model.uri, digest.hexdigest()[:16], folder), True)


def _fetch_bucket(model: RunModel, weights: bool) -> ModelFiles:
    storage = open_storage(model.uri)
    objects = [item for item in storage.list() if wanted(item.name)]
    revision = listing_hash("".join(f"{item.name} {item.size} {item.generation}\n" for item in objects))
    names = [item.name for item in objects if wanted(item.name, weights)]
    return _downloaded(model, weights, revision, lambda to: storage.download({name: to / name for name in names}))


def _fetch_modelscope(model: RunModel, weights: bool) -> ModelFiles:
    repository = hubs.modelscope(model)
    found = hubs.modelscope_files(repository)
    needed = [file for file in found if wanted(file.path, weights)]
    return _downloaded(model, weights, hubs.revision_of(found), lambda to: repository.download(needed, to))


def _fetch_kaggle(model: RunModel, weights: bool, revision: str | None) -> ModelFiles:
    from gemmatune_trainer.kaggle import Variation

    variation = Variation(model.uri, revision or model.revision)
    version = variation.version()
    needed = [file for file in variation.files() if wanted(file.path, weights)]
    return _downloaded(model, weights, version, lambda to: variation.download(needed, to))


def _downloaded(model: RunModel, weights: bool, revision: str, download: Callable[[Path], None]) -> ModelFiles:
    """The model's folder in the cache, filled by `download` where it is not there."""

    def fill(folder: Path) -> None:
        log.info("downloading the model", uri=model.uri, weights=weights)
        download(folder)

    name = hashlib.sha256(f"{model.uri} {revision} {weights}".encode()).hexdigest()[:16]
    return _checked(ModelFiles(model.uri, revision, _once(cache_folder("models") / name, fill)), weights)


def _once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """A folder that has all that `fill` writes, or does not exist; processes that fill it at the same time may."""
    if folder.is_dir():
        return folder
    temporary = folder.with_suffix(f".{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        fill(temporary)
        with suppress(OSError):  # another process was faster, or there was nothing to write
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _checked(files: ModelFiles, weights: bool) -> ModelFiles:
    if weights and not any(files.folder.glob(hubs.WEIGHTS)):
        raise InvalidConfig(
            f"model.uri: {files.uri} holds no .safetensors file",
            "Convert the weights to safetensors (others are refused).",
        )
    _ = files.model
    return files
