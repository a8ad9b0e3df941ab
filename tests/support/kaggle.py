"""Kaggle on loopback: models by its HTTP interface, licences that are accepted or not, files by way of a store."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.loopback import LoopbackServer

USER, KEY = "somebody", "kaggle-good"
"""An account that has accepted every licence."""


def basic(user: str, key: str) -> str:
    """The header of HTTP basic authentication."""
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


@dataclass
class Variation:
    """One variation of a model: files by version, and whether its licence must be accepted."""

    gated: bool
    versions: dict[int, dict[str, bytes]] = field(default_factory=dict)


class _Store(LoopbackServer):
    """Where files lie: another server, as another host is to a client."""

    def __init__(self, kaggle: Kaggle) -> None:
        super().__init__(type("Handler", (_StoreHandler,), {"kaggle": kaggle}))


class Kaggle(LoopbackServer):
    """The server. Processes reach it by KAGGLE_API_ENDPOINT = `endpoint`."""

    def __init__(self) -> None:
        self.variations: dict[str, Variation] = {}
        self.requests: list[str] = []
        """Paths and queries that were asked for."""
        self.ranges: list[str] = []
        """Ranges that the store was asked for."""
        self.leaked: list[str] = []
        """Credentials that came to the store."""
        self.failing: HTTPStatus | None = None
        """Status that every request is answered with, where one is set."""
        self.breaks = 0
        """So many downloads are still to be broken off half way."""
        self.wrong = False
        """Whether a byte is changed on the way."""
        self.store = _Store(self)
        super().__init__(type("Handler", (_Handler,), {"kaggle": self}))

    def add(self, name: str, files: Mapping[str, bytes], version: int = 1, gated: bool = False) -> None:
        """Adds a version to OWNER/MODEL/FRAMEWORK/VARIATION."""
        self.variations.setdefault(name, Variation(gated)).versions[version] = dict(files)

    def __exit__(self, *arguments: Any) -> None:
        self.store.__exit__(*arguments)
        super().__exit__(*arguments)


class _Answering(BaseHTTPRequestHandler):
    kaggle: Kaggle
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""

    def send(self, status: HTTPStatus, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Handler(_Answering):
    """Answers one request."""

    def do_GET(self) -> None:
        self.kaggle.requests.append(self.path)
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        name, rest = "/".join(parts[3:7]), parts[7:]
        found = self.kaggle.variations.get(name)
        if self.kaggle.failing is not None:
            self._tell(self.kaggle.failing, "Kaggle is out of order")
        elif self.headers.get("Authorization") not in (None, basic(USER, KEY)):
            self._tell(HTTPStatus.UNAUTHORIZED, "Unauthenticated")
        elif parts[:3] != ["api", "v1", "models"] or found is None:
            self._tell(HTTPStatus.NOT_FOUND, "Not found")
        elif found.gated and self.headers.get("Authorization") is None:
            self._tell(HTTPStatus.FORBIDDEN, "Permission 'models.get' was denied")
        elif rest == ["get"]:
            self._json({"versionNumber": max(found.versions), "slug": parts[6]})
        elif not rest[0].isdigit() or int(rest[0]) not in found.versions:
            self._tell(HTTPStatus.NOT_FOUND, "Not found")
        elif rest[1] == "files":
            self._list(found.versions[int(rest[0])], parse_qs(url.query))
        else:
            self.send(HTTPStatus.FOUND, headers={"Location": f"{self.kaggle.store.endpoint}/{name}/{'/'.join(rest)}"})

    def _list(self, files: Mapping[str, bytes], query: Mapping[str, list[str]]) -> None:
        """Two files a page, whatever was asked for: Kaggle has a largest page of its own."""
        begin = int(query.get("page_token", ["0"])[0])
        page = sorted(files.items())[begin : begin + 2]
        more = str(begin + 2) if begin + 2 < len(files) else ""
        listed = [{"name": name, "totalBytes": len(data)} for name, data in page]
        self._json({"files": listed, "nextPageToken": more})

    def _json(self, body: Any) -> None:
        self.send(HTTPStatus.OK, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _tell(self, status: HTTPStatus, message: str) -> None:
        self.send(status, json.dumps({"code": int(status), "message": message}).encode())


class _StoreHandler(_Answering):
    """Sends one file."""

    def do_GET(self) -> None:
        if "Authorization" in self.headers:
            self.kaggle.leaked.append(self.headers["Authorization"])
        parts = unquote(self.path).strip("/").split("/")
        data = self.kaggle.variations["/".join(parts[:4])].versions[int(parts[4])]["/".join(parts[6:])]
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        headers = {"x-goog-hash": f"crc32c=AAAAAA==,md5={digest}", "Accept-Ranges": "bytes"}
        status, part = HTTPStatus.OK, data
        if wanted := self.headers.get("Range"):
            self.kaggle.ranges.append(wanted)
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            status, part = HTTPStatus.PARTIAL_CONTENT, data[begin:]
        if self.kaggle.wrong:
            part = bytes([part[0] ^ 1]) + part[1:]
        if self.kaggle.breaks and len(part) > 1:
            self.kaggle.breaks -= 1
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(part))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.send(status, part, headers)
