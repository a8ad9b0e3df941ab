"""Cloud Storage as storage: retries, create-once by generation, parallel transfers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import google.auth
import requests
import tenacity
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import TransportError
from google.cloud import storage
from google.cloud.storage import transfer_manager
from google.cloud.storage.exceptions import DataCorruption

from gemmatune_trainer.errors import AccessDenied, InvalidConfig, StorageUnavailable, identity_away, naming, text_of
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, StoredObject, crc32c

Result = TypeVar("Result")

_TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two bytes."""
_WORKERS = 8
_TRANSIENT = (
    exceptions.TooManyRequests,
    exceptions.ServerError,
    exceptions.RetryError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    TransportError,
    DataCorruption,
)
_REQUEST_TIMEOUT_STATUS = 408
_NO_BUCKET = "bucket does not exist"


def _is_transient(error: BaseException) -> bool:
    if getattr(error, "code", None) == _REQUEST_TIMEOUT_STATUS or identity_away(error):
        return True
    return isinstance(error, _TRANSIENT)


class GcsStorage:
    """Objects of one bucket below a prefix.

    `endpoint` is that of a Cloud Storage double, which is asked without credentials; None is Google's. The library's
    own variables (STORAGE_EMULATOR_HOST) change nothing: a leaked one must not redirect a run.
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str | None, patience: float) -> None:
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience = patience
        with naming(self.uri):
            self._client = self._ask("opening", "", lambda: _client(endpoint))
        self._bucket = self._client.bucket(bucket)

    def locate(self, name: str) -> str:
        """The object's URI."""
        return f"{self.uri}/{name}" if name else self.uri

    def read(self, name: str) -> bytes:
        """The object's content. Raises ObjectMissing."""
        return self.read_generation(name)[0]

    def read_generation(self, name: str) -> tuple[bytes, int]:
        """The object's content and generation. Raises ObjectMissing."""

        def work() -> tuple[bytes, int]:
            blob = self._blob(name)
            data: bytes = blob.download_as_bytes(timeout=_TIMEOUT, retry=None)
            if blob.generation is None:
                blob.reload(timeout=_TIMEOUT, retry=None)
            return data, int(blob.generation)

        return self._ask("reading", name, work)

    def read_part(self, item: StoredObject, begin: int, end: int) -> bytes:
        """Some bytes of one generation of an object. Raises ObjectMissing."""

        def work() -> bytes:
            blob = self._bucket.blob(self._prefix + item.name, generation=item.generation)
            data: bytes = blob.download_as_bytes(start=begin, end=end - 1, timeout=_TIMEOUT, retry=None)
            return data

        return self._ask("reading", item.name, work)

    def write(self, name: str, data: bytes, if_generation_match: int | None = None) -> int:
        """Writes the object as a whole; its generation. Raises PreconditionFailed."""
        tries = 0

        def work() -> int:
            nonlocal tries
            tries += 1
            blob = self._blob(name)
            try:
                blob.upload_from_string(data, if_generation_match=if_generation_match, timeout=_TIMEOUT, retry=None)
            except exceptions.PreconditionFailed as error:
                if tries == 1:
                    raise PreconditionFailed(self.locate(name)) from error
                return self._mine(name, data)
            return int(blob.generation)

        return self._ask("writing", name, work)

    def _mine(self, name: str, data: bytes) -> int:
        """The generation that an earlier try of this write has made although its answer got lost."""
        try:
            found, generation = self.read_generation(name)
        except ObjectMissing as error:
            raise PreconditionFailed(self.locate(name)) from error
        if found != data:
            raise PreconditionFailed(self.locate(name))
        return generation

    def list(self, prefix: str = "") -> Sequence[StoredObject]:
        """The objects whose names begin with `prefix`, by name."""

        def work() -> list[StoredObject]:
            blobs = self._client.list_blobs(self._bucket, prefix=self._prefix + prefix, timeout=_TIMEOUT, retry=None)
            names = ((blob, blob.name.removeprefix(self._prefix)) for blob in blobs)
            return [
                StoredObject(name, int(blob.size), int(blob.generation), blob.crc32c or "")
                for blob, name in names
                if not name.endswith("/") and not any(part.startswith(".") for part in name.split("/"))
            ]

        return sorted(self._ask("listing", prefix, work), key=lambda item: item.name)

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects."""
        for name in names:
            try:
                self._ask("deleting", name, lambda name=name: self._blob(name).delete(timeout=_TIMEOUT, retry=None))
            except ObjectMissing:
                continue

    def delete_found(self, items: Sequence[StoredObject]) -> None:
        """Deletes objects of a listing, as long as they are the generations that it had."""
        for item in items:
            how = {"if_generation_match": item.generation, "timeout": _TIMEOUT, "retry": None}
            try:
                self._ask("deleting", item.name, lambda name=item.name, how=how: self._blob(name).delete(**how))
            except (ObjectMissing, exceptions.PreconditionFailed):
                continue

    def upload(self, files: Mapping[str, Path], new: bool = False) -> None:
        """Writes local files as objects, several at a time. Raises PreconditionFailed where they shall be new."""
        rest = dict(files)
        how = {"timeout": _TIMEOUT, **({"if_generation_match": 0} if new else {})}

        def work() -> None:
            pairs = [(str(path), self._blob(name)) for name, path in rest.items()]
            results = transfer_manager.upload_many(
                pairs, upload_kwargs=how, worker_type=transfer_manager.THREAD, max_workers=_WORKERS
            )
            self._keep_failed(rest, [self._arrived(*pair) for pair in zip(list(rest.items()), results, strict=True)])

        self._ask("writing", next(iter(files), ""), work)

    def download(self, files: Mapping[str, Path]) -> None:
        """Reads objects into local files, several at a time. Raises ObjectMissing."""
        rest = dict(files)
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)

        def work() -> None:
            pairs = [(self._blob(name), str(path)) for name, path in rest.items()]
            results = transfer_manager.download_many(
                pairs, download_kwargs={"timeout": _TIMEOUT}, worker_type=transfer_manager.THREAD, max_workers=_WORKERS
            )
            self._keep_failed(rest, results)

        self._ask("reading", next(iter(files), ""), work)

    def _arrived(self, file: tuple[str, Path], result: Any) -> Any:
        """What became of a file's upload, where its name was taken: an earlier try, whose answer got lost, counts."""
        if not isinstance(result, exceptions.PreconditionFailed):
            return result
        name, path = file
        blob = self._blob(name)
        try:
            blob.reload(timeout=_TIMEOUT, retry=None)
        except exceptions.NotFound:
            return exceptions.ServiceUnavailable(f"{self.locate(name)} was there and is gone")  # to be tried again
        except Exception as error:  # noqa: BLE001 - what became of an upload is an exception, as the library has it
            return error
        return None if blob.crc32c == crc32c(path) else PreconditionFailed(self.locate(name))

    def _keep_failed(self, rest: dict[str, Path], results: Sequence[Any]) -> None:
        """Leaves in `rest` what has to be tried again, and raises the first error, lasting ones before transient."""
        failed = {name: result for name, result in zip(list(rest), results, strict=True) if _is_error(result)}
        for name in set(rest) - set(failed):
            del rest[name]
        for name, error in sorted(failed.items(), key=lambda item: _is_transient(item[1])):
            if isinstance(error, exceptions.NotFound) and _NO_BUCKET not in str(error).lower():
                raise ObjectMissing(self.locate(name)) from error
            raise error

    def _blob(self, name: str) -> storage.Blob:
        return self._bucket.blob(self._prefix + name)

    def _ask(self, doing: str, name: str, work: Callable[[], Result]) -> Result:
        """Does `work`, again after 429, 5xx, time-outs and damaged transfers, for `patience` seconds."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
            stop=tenacity.stop_after_delay(self._patience),
            reraise=True,
        )
        where = self.locate(name)
        try:
            return retrying(work)
        except (exceptions.Forbidden, exceptions.Unauthorized) as error:
            raise AccessDenied(
                f"{doing} {where} is refused: {text_of(error)}",
                "Grant roles/storage.objectUser on the bucket to the pod's ServiceAccount (Workload Identity), "
                "or log in with `gcloud auth application-default login` locally.",
            ) from error
        except exceptions.NotFound as error:
            if doing in ("reading", "deleting") and _NO_BUCKET not in str(error).lower():
                raise ObjectMissing(where) from error
            raise InvalidConfig(
                f"{doing} {where}: the bucket {self._bucket.name!r} does not exist", "Create it, or correct the URI."
            ) from error
        except Exception as error:
            if _is_transient(error):
                raise StorageUnavailable(
                    f"{doing} {where} failed for {self._patience:.0f} s: {text_of(error)}"
                ) from error
            raise


def _is_error(result: Any) -> bool:
    return isinstance(result, BaseException)


def _client(endpoint: str | None) -> storage.Client:
    if endpoint:
        credentials: Any = AnonymousCredentials()
        return storage.Client(
            project="gemmatune", credentials=credentials, client_options=ClientOptions(api_endpoint=endpoint)
        )
    credentials, project = _login()
    options = ClientOptions(api_endpoint=f"https://storage.{credentials.universe_domain}")
    return storage.Client(project=project, credentials=credentials, client_options=options)


@functools.cache
def _login() -> tuple[Any, str | None]:
    """Who this process is; found once, so that a metadata server that is away later ends no process that had it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user's own login without a quota project, which storage does not need
        credentials, project = google.auth.default(scopes=storage.Client.SCOPE)
    return credentials, project
