"""A hub on loopback that speaks ModelScope's protocol: repositories of models and datasets, private or gated or not.

Files are sent by way of a redirect to a store, as the real hub does with large ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.loopback import LoopbackServer

Access = Literal["public", "gated", "private"]
TOKEN = "ms-good"
"""A token that may read every repository of the double."""
STRANGER = "ms-stranger"
"""A valid token of an account that may read public repositories only."""
_NOT_FOUND = 10010205001
_FORBIDDEN = 10010101004


@dataclass
class Repository:
    """One repository: files by revision."""

    access: Access = "public"
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request as it came: path, query, the token in cookie and header, the range that was asked for."""

    path: str
    query: Mapping[str, str]
    cookie: str
    bearer: str
    range: str


class ModelScope(LoopbackServer):
    """The server. Processes reach it by MODELSCOPE_ENDPOINT = `endpoint`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        """Every request so far."""
        self.sent = 0
        """Bytes of files that were sent."""
        self.failing: HTTPStatus | None = None
        """Status that every request is answered with, where one is set."""
        self.breaks = 0
        """So many downloads are still to be broken off half way."""
        self.ignores_ranges = False
        """Whether files are always sent whole."""
        self.repositories: dict[str, Repository] = {}
        super().__init__(type("Handler", (_Handler,), {"hub": self}))

    def add(
        self,
        kind: Literal["models", "datasets"],
        name: str,
        files: Mapping[str, bytes | str],
        access: Access = "public",
        revision: str = "master",
    ) -> None:
        """Adds a repository, or a revision to one."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository(access))
        content = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        repository.revisions[revision] = content


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: ModelScope
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("m_session_id")
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        request = Request(
            url.path,
            query,
            cookie.value if cookie else "",
            bearer,
            self.headers.get("Range", "").removeprefix("bytes="),
        )
        self.hub.requests.append(request)
        parts = url.path.strip("/").split("/")
        if self.hub.failing is not None:
            self._tell(self.hub.failing, int(self.hub.failing), "the hub is out of order")
        elif parts[0] == "_store":
            self._send_file(
                self.hub.repositories["/".join(parts[1:4])].revisions[query["r"]][query["f"]], request.range
            )
        elif parts[:2] == ["api", "v1"] and len(parts) >= 6:
            self._answer("/".join(parts[2:5]), "/".join(parts[5:]), request)
        else:
            self._tell(HTTPStatus.NOT_FOUND, _NOT_FOUND, "no such interface")

    def _answer(self, name: str, what: str, request: Request) -> None:
        repository = self.hub.repositories.get(name)
        token = request.cookie if request.cookie == request.bearer else "only half of the token was sent"
        if token not in ("", TOKEN, STRANGER):
            self._tell(HTTPStatus.UNAUTHORIZED, 401, "user not logged in")
        elif repository is None or (repository.access == "private" and token != TOKEN):
            self._tell(HTTPStatus.NOT_FOUND, _NOT_FOUND, "模型不存在" if name.startswith("models") else "数据集不存在")
        elif what == "revisions":
            branches = [{"Revision": key, "CommitId": _sha(key)} for key in repository.revisions]
            self._data({"RevisionMap": {"Branches": branches, "Tags": None}})
        elif what == ("repo/files" if name.startswith("models") else "repo/tree"):
            files = repository.revisions.get(request.query["Revision"])
            # The real hub lists no files for a revision that does not exist, and calls that a success.
            entries = None if files is None else _entries(files)
            if entries is not None and what == "repo/tree":
                size, number = int(request.query["PageSize"]), int(request.query["PageNumber"])
                entries = entries[(number - 1) * size : number * size]
            self._data({"Files": entries, "IsVisual": False, "LatestCommitter": None})
        elif what == "repo" and repository.access == "gated" and token != TOKEN:
            self._tell(HTTPStatus.FORBIDDEN, _FORBIDDEN, "unauthorized permission")
        elif what == "repo" and request.query["FilePath"] in repository.revisions.get(request.query["Revision"], {}):
            place = urlencode({"r": request.query["Revision"], "f": request.query["FilePath"]})
            self._send(HTTPStatus.FOUND, b"", {"Location": f"{self.hub.endpoint}/_store/{name}?{place}"})
        else:
            self._tell(HTTPStatus.NOT_FOUND, _NOT_FOUND, "file does not exist")

    def _send_file(self, data: bytes, wanted: str) -> None:
        status, headers, part = HTTPStatus.OK, {}, data
        if wanted and not self.hub.ignores_ranges:
            begin, _, end = wanted.partition("-")
            first, last = int(begin), min(int(end or len(data) - 1), len(data) - 1)
            status, part = HTTPStatus.PARTIAL_CONTENT, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        if self.hub.breaks and len(part) > 1:
            self.hub.breaks -= 1
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(part))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.hub.sent += len(part)
        self._send(status, part, headers)

    def _data(self, data: object) -> None:
        body = {"Code": 200, "Data": data, "Message": "success", "RequestId": "1", "Success": True}
        self._send(HTTPStatus.OK, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _tell(self, status: HTTPStatus, code: int, message: str) -> None:
        body = {"Code": code, "Message": message, "RequestId": "1", "Success": False}
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send(self, status: HTTPStatus, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _entries(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Files and the folders above them, as a listing has them."""
    folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
    trees = [{"Path": path, "Name": path.split("/")[-1], "Type": "tree", "Size": 0} for path in sorted(folders)]
    blobs = [
        {
            "Path": path,
            "Name": path.split("/")[-1],
            "Type": "blob",
            "Size": len(data),
            "Sha256": hashlib.sha256(data).hexdigest(),
            "Revision": _sha(path),
            "IsLFS": False,
        }
        for path, data in files.items()
    ]
    return [*trees, *blobs]


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
