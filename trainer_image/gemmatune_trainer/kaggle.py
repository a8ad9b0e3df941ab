"""Kaggle's models (kaggle://OWNER/MODEL/FRAMEWORK/VARIATION) by its HTTP interface: a version's files, their bytes.

Three calls of the interface behind Kaggle's own client are all that a read needs, as of kagglehub's source of 2026:
`/api/v1/models/O/M/F/V/get` names the newest version, `.../VERSION/files` lists its files page by page,
`.../VERSION/download/FILE` sends one, by a redirect to its object store, which answers byte ranges and names an MD5.
Every call carries the user's name and key (HTTP basic); the store must not see them.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from gemmatune_trainer.errors import AccessDenied, HubUnavailable, InvalidConfig, text_of
from gemmatune_trainer.resumable import RETRIES, download
from gemmatune_trainer.stored import MISFITS, Unreadable, parsed

ENDPOINT_VARIABLE = "KAGGLE_API_ENDPOINT"
DEFAULT_ENDPOINT = "https://www.kaggle.com"
USER_VARIABLE, KEY_VARIABLE = "KAGGLE_USERNAME", "KAGGLE_KEY"
PAGE_FILES = 200
_TIMEOUT_SECONDS = 60.0
_AT_ONCE = 4
_HASHES = "x-goog-hash"


@dataclass(frozen=True, slots=True)
class KaggleFile:
    """One file of a version; `size` is 0 where Kaggle does not tell it."""

    path: str
    size: int


class Variation:
    """A variation of a model at one version (default: the newest).

    Every method raises AccessDenied where it does not exist, its licence is not accepted or the key may not read it,
    HubUnavailable where Kaggle does not answer, also after retries.
    """

    def __init__(self, uri: str, revision: str | None) -> None:
        self._uri = uri
        self._name = "/".join(quote(part) for part in uri.removeprefix("kaggle://").strip("/").split("/"))
        self._revision = revision
        self._endpoint = (os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT).rstrip("/")
        user, key = os.environ.get(USER_VARIABLE), os.environ.get(KEY_VARIABLE)
        self._session = requests.Session()
        self._session.auth = (user, key) if user and key else None  # requests leaves it out after a redirect elsewhere
        retry = Retry(
            RETRIES,
            backoff_factor=1,  # half a minute in all
            status_forcelist=[429, 500, 502, 503, 504],
            raise_on_status=False,
            respect_retry_after_header=False,  # it may name an hour
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=_AT_ONCE))

    def version(self) -> str:
        """The version's number: the one asked for, or the newest.

        Raises:
            InvalidConfig: what was asked for is no number.
        """
        if self._revision is None:
            found = self._data("get").get("versionNumber")
            if not isinstance(found, int):
                raise HubUnavailable(f"{self._uri}: Kaggle names no version")
            self._revision = str(found)
        if not self._revision.isdigit():
            raise InvalidConfig(
                f"model.revision: {self._uri} has no version {self._revision!r}: Kaggle counts versions from 1",
                "Use such as 2, or leave it out for the newest.",
            )
        return self._revision

    def files(self) -> list[KaggleFile]:
        """All files of the version, by path."""
        try:
            return sorted(self._entries(), key=lambda file: file.path)
        except MISFITS as error:
            raise HubUnavailable(f"{self._uri}: Kaggle's list of files has another form: {text_of(error)}") from error

    def _entries(self) -> Iterator[KaggleFile]:
        page = ""
        while True:
            query = {"page_size": str(PAGE_FILES), **({"page_token": page} if page else {})}
            found = self._data(f"{self.version()}/files", query)
            for entry in found.get("files") or []:
                yield KaggleFile(str(entry["name"]), int(entry.get("totalBytes") or entry.get("size") or 0))
            page = str(found.get("nextPageToken") or "")
            if not page:
                return

    def download(self, files: Sequence[KaggleFile], folder: Path) -> None:
        """Writes files below `folder`, several at a time, and checks sizes and hashes."""
        with ThreadPoolExecutor(_AT_ONCE) as workers:
            list(workers.map(lambda file: self._download(file, folder / file.path), files))

    def _download(self, file: KaggleFile, target: Path) -> None:
        def ask(begin: int) -> requests.Response:
            headers = {"Range": f"bytes={begin}-"} if begin else {}
            return self._get(f"{self.version()}/download/{quote(file.path)}", {}, headers, stream=True)

        found = download(f"{self._uri}: {file.path}", ask, target, lambda: hashlib.md5(usedforsecurity=False))
        told, whole = _md5_of(found.headers), file.size or found.announced
        damaged = told and base64.b64encode(found.digest).decode() != told
        if damaged or (file.size and found.size != file.size) or (whole >= 0 and found.size != whole):
            raise HubUnavailable(f"{self._uri}: {file.path} arrived damaged: {found.size} bytes of {whole}")

    def _data(self, what: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        answer = self._get(what, query or {})
        try:
            body = parsed(answer.content)
        except Unreadable as error:
            raise HubUnavailable(f"{self._uri}: Kaggle's answer is no JSON: {text_of(error)}") from error
        if not isinstance(body, dict):
            raise HubUnavailable(f"{self._uri}: Kaggle's answer is {type(body).__name__}")
        return body

    def _get(
        self, what: str, query: dict[str, str], headers: dict[str, str] | None = None, stream: bool = False
    ) -> requests.Response:
        url = f"{self._endpoint}/api/v1/models/{self._name}/{what}"
        try:
            answer = self._session.get(url, params=query, headers=headers, stream=stream, timeout=_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise HubUnavailable(f"model.uri: {self._uri}: {text_of(error)}") from error
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise self._refused(answer)
        if not answer.ok:
            told = f"HTTP {answer.status_code} {_message(answer)}".rstrip()
            raise HubUnavailable(f"model.uri: Kaggle does not answer for {self._uri}: {told}")
        return answer

    def _refused(self, answer: requests.Response) -> AccessDenied:
        who = "the key may not read it" if self._session.auth else "needs a key"
        version = f" in version {self._revision}" if self._revision else ""
        return AccessDenied(
            f"model.uri: {self._uri} does not exist{version}, or {who} "
            f"(HTTP {answer.status_code} {_message(answer)})".replace(" )", ")"),
            "Correct the name or version, accept the licence on the model's page, and set model.secretRef to a Secret "
            f"with {USER_VARIABLE} and {KEY_VARIABLE} of an account that may read it.",
        )


def _md5_of(headers: Mapping[str, str]) -> str:
    """The MD5 of the whole file in base64, as Cloud Storage names it; empty where it does not."""
    for item in headers.get(_HASHES, "").split(","):
        kind, _, value = item.strip().partition("=")
        if kind == "md5":
            return value
    return ""


def _message(answer: requests.Response) -> str:
    """What Kaggle says about a failure, on one line."""
    try:
        body = parsed(answer.content)
    except Unreadable:
        body = {}
    told = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(told or answer.reason or "").split())
