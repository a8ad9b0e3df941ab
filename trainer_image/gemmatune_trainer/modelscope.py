"""ModelScope's hub (ms://ORG/NAME) by its HTTP interface: the files of a repository's revision, and their bytes.

Four calls of the interface behind the hub's own SDK are all that a read needs; found there, as of modelscope-hub 0.1.9:
`/api/v1/models/ID/repo/files` and `/api/v1/datasets/ID/repo/tree` list, `.../revisions` names branches and tags,
`.../repo?Revision=&FilePath=` sends a file (it answers byte ranges, and may redirect to the object store). A revision
that does not exist is listed as having no files. The token goes as a session cookie and as a bearer token, because
either alone is refused by some of them.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from gemmatune_trainer import blocks
from gemmatune_trainer.errors import AccessDenied, HubUnavailable, InvalidConfig, text_of
from gemmatune_trainer.resumable import BROKEN, RETRIES, download
from gemmatune_trainer.stored import MISFITS, Unreadable, parsed

Kind = Literal["models", "datasets"]
ENDPOINT_VARIABLE = "MODELSCOPE_ENDPOINT"
DEFAULT_ENDPOINT = "https://modelscope.cn"
TOKEN_VARIABLE = "MODELSCOPE_API_TOKEN"
MAIN_BRANCH = "master"
PAGE_FILES = 200
_TIMEOUT_SECONDS = 60.0
_AT_ONCE = 4
_SUBJECTS: Mapping[Kind, str] = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a revision; `sha256` is empty where the hub names none."""

    path: str
    size: int
    sha256: str


class Repository:
    """A repository of ms:// at one revision (default: its main branch).

    Every method raises AccessDenied where the repository does not exist or may not be read, HubUnavailable where the
    hub does not answer, also after retries.
    """

    def __init__(self, kind: Kind, uri: str, revision: str | None, token: str | None) -> None:
        self._kind = kind
        self._subject = _SUBJECTS[kind]
        self._uri = uri
        self._name = uri.removeprefix("ms://").strip("/")
        self._asked = revision
        self._revision = revision or MAIN_BRANCH
        self._endpoint = (os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT).rstrip("/")
        self._token = token
        self._session = requests.Session()
        retry = Retry(
            RETRIES,
            backoff_factor=1,  # half a minute in all
            status_forcelist=[429, 500, 502, 503, 504],
            raise_on_status=False,
            respect_retry_after_header=False,  # it may name an hour
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=_AT_ONCE))
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
            self._session.cookies.set("m_session_id", token, domain=urlsplit(self._endpoint).hostname or "", path="/")

    def files(self) -> list[HubFile]:
        """All files of the revision, by path.

        Raises:
            InvalidConfig: there is no such revision; the message lists those that there are.
        """
        try:
            return self._files()
        except MISFITS as error:
            raise HubUnavailable(f"{self._uri}: the hub's list of files has another form: {text_of(error)}") from error

    def _files(self) -> list[HubFile]:
        entries = list(self._entries())
        if not entries and self._asked is not None and self._asked not in (known := self._revisions()):
            raise InvalidConfig(
                f"{self._subject}.revision: {self._uri} has no revision {self._asked!r}, it has {', '.join(known)}",
                "Name a branch or tag.",
            )
        found = [
            HubFile(entry["Path"], int(entry.get("Size") or 0), str(entry.get("Sha256") or ""))
            for entry in entries
            if entry.get("Type") != "tree"
        ]
        return sorted(found, key=lambda file: file.path)

    def download(self, files: Sequence[HubFile], folder: Path) -> None:
        """Writes files below `folder`, several at a time, and checks sizes and hashes."""
        with ThreadPoolExecutor(_AT_ONCE) as workers:
            list(workers.map(lambda file: self._download(file, folder / file.path), files))

    def opener(self, file: HubFile) -> Callable[[], io.BufferedReader]:
        """Opens a file to read from, of which only the blocks that are asked for are fetched."""
        return blocks.opener(file.size, partial(self.read, file))

    def read(self, file: HubFile, begin: int, end: int) -> bytes:
        """The bytes from `begin` up to `end`, which lie in the file."""
        for attempt in range(RETRIES + 1):
            try:
                answer = self._get("repo", self._place(file), {"Range": f"bytes={begin}-{end - 1}"}, stream=True)
                data = answer.content
            except BROKEN as error:
                if attempt == RETRIES:
                    raise HubUnavailable(f"{self._uri}: {file.path}: {text_of(error)}") from error
            else:
                break
        if answer.status_code == HTTPStatus.OK:  # the range was not minded
            data = data[begin:end]
        if len(data) != end - begin:
            raise HubUnavailable(f"{self._uri}: {file.path} has {len(data)} bytes where {end - begin} were announced")
        return data

    def _entries(self) -> Iterator[dict[str, Any]]:
        query: dict[str, Any] = {"Revision": self._revision, "Recursive": "True"}
        if self._kind == "models":
            yield from self._data("repo/files", query).get("Files") or []
            return
        number = 1
        while True:
            page = self._data("repo/tree", query | {"PageNumber": number, "PageSize": PAGE_FILES}).get("Files") or []
            yield from page
            if len(page) < PAGE_FILES:
                return
            number += 1

    def _revisions(self) -> list[str]:
        named = self._data("revisions", {}).get("RevisionMap") or {}
        return [entry["Revision"] for kind in ("Branches", "Tags") for entry in named.get(kind) or []]

    def _place(self, file: HubFile) -> dict[str, str]:
        return {"Revision": self._revision, "FilePath": file.path}

    def _download(self, file: HubFile, target: Path) -> None:
        def ask(begin: int) -> requests.Response:
            return self._get("repo", self._place(file), {"Range": f"bytes={begin}-"}, stream=True)

        found = download(f"{self._uri}: {file.path}", ask, target, hashlib.sha256, file.size)
        if found.size != file.size or (file.sha256 and found.digest.hex() != file.sha256):
            raise HubUnavailable(f"{self._uri}: {file.path} arrived damaged: {found.size} bytes of {file.size}")

    def _data(self, what: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """The `Data` of an answer; the hub tells some refusals inside an answer that is HTTP 200."""
        answer = self._get(what, query)
        try:
            body = parsed(answer.content)
        except Unreadable as error:
            raise HubUnavailable(f"{self._uri}: the hub's answer is no JSON: {text_of(error)}") from error
        if not isinstance(body, dict) or body.get("Code") != HTTPStatus.OK:
            told = str(body.get("Message") if isinstance(body, dict) else body)
            raise self._refused(told)
        data = body.get("Data")
        return data if isinstance(data, dict) else {}

    def _get(
        self, what: str, query: Mapping[str, Any], headers: Mapping[str, str] | None = None, stream: bool = False
    ) -> requests.Response:
        url = f"{self._endpoint}/api/v1/{self._kind}/{self._name}/{what}"
        try:
            answer = self._session.get(
                url, params=query, headers=headers, stream=stream, timeout=_TIMEOUT_SECONDS, allow_redirects=True
            )
        except requests.RequestException as error:
            raise HubUnavailable(f"{self._subject}.uri: {self._uri}: {text_of(error)}") from error
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise self._refused(_message(answer))
        if not answer.ok:
            raise HubUnavailable(
                f"{self._subject}.uri: the hub does not answer for {self._uri}: HTTP {answer.status_code} "
                f"{_message(answer)}".rstrip()
            )
        return answer

    def _refused(self, told: str) -> AccessDenied:
        who = "the token may not read it" if self._token else "needs a token"
        return AccessDenied(
            f"{self._subject}.uri: {self._uri} does not exist, or {who} ({told})",
            f"Correct the name, or set {self._subject}.secretRef to a token that may read the repository.",
        )


def _message(answer: requests.Response) -> str:
    """What the hub says about a failure, on one line."""
    try:
        body = parsed(answer.content)
    except Unreadable:
        body = {}
    told = body.get("Message") if isinstance(body, dict) else None
    return " ".join(str(told or answer.reason or "").split())
