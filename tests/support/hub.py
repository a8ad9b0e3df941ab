"""A hub on loopback that speaks the Hugging Face hub's protocol: repositories of models and datasets, gated or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.loopback import LoopbackServer

Kind = Literal["models", "datasets"]
TOKEN = "hf_good"
"""A token that may read every repository of the double."""
STRANGER = "hf_stranger"
"""A valid token of an account that may read public repositories only."""
_ERRORS = {
    "RepoNotFound": (HTTPStatus.UNAUTHORIZED, "Invalid username or password."),
    "GatedRepo": (HTTPStatus.FORBIDDEN, "Access to this repository is restricted and you are not in the list."),
    "RevisionNotFound": (HTTPStatus.NOT_FOUND, "Invalid rev id"),
    "EntryNotFound": (HTTPStatus.NOT_FOUND, "Entry not found"),
}


@dataclass
class Repository:
    """One repository: its newest commit, and older ones by name."""

    kind: Kind
    name: str
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    access: Literal["public", "gated", "private"] = "public"

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit; None where there is no such revision."""
        if revision in self.revisions:
            return _sha(f"{self.name}@{revision}")
        return next((sha for sha in map(self.commit, self.revisions) if sha == revision), None)

    def files(self, commit: str) -> dict[str, bytes]:
        """The files of a commit."""
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


class Hub(LoopbackServer):
    """The server. Processes reach it by HF_ENDPOINT = `endpoint`."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        """What may read every repository."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and token of every request so far."""
        self.sent = 0
        """Bytes of files that were sent; also by GET /_sent."""
        self.failing: HTTPStatus | None = None
        """Status that every request is answered with, where one is set; also by GET /_failing/503 and /_failing/200."""
        self._repositories: dict[tuple[str, str], Repository] = {}
        super().__init__(type("Handler", (_Handler,), {"hub": self}))

    def add(
        self,
        kind: Kind,
        name: str,
        files: Mapping[str, bytes | str],
        access: Literal["public", "gated", "private"] = "public",
        revision: str = "main",
    ) -> str:
        """Adds a repository, or a revision to one; its commit."""
        repository = self._repositories.setdefault((kind, name), Repository(kind, name, access=access))
        content = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        repository.revisions[revision] = content
        commit = repository.commit(revision)
        assert commit is not None
        return commit

    def find(self, kind: str, name: str) -> Repository | None:
        """The repository of a kind and name."""
        return self._repositories.get((kind, name))

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables that lead a process here, with short waits between its retries."""
        values = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return values | ({"HF_TOKEN": token} if token else {})


class _Refused(Exception):
    """The request is answered with one of the hub's error codes."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        url = urlsplit(self.path)
        path = [unquote(part) for part in url.path.strip("/").split("/")]
        self.hub.requests.append((self.command, url.path, self._token))
        if path[0] == "_failing":
            self.hub.failing = HTTPStatus(int(path[1])) if path[1] != "200" else None
            self._send(HTTPStatus.OK, b"")
        elif path[0] == "_sent":
            self._json(self.hub.sent)
        elif self.hub.failing is not None:
            self._send(self.hub.failing, b"the hub is out of order")
        elif self._token not in ("", self.hub.token, STRANGER):
            self._send(HTTPStatus.UNAUTHORIZED, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        else:
            try:
                self._route(path, parse_qs(url.query), body)
            except _Refused as error:
                self._refuse(str(error))

    def _refuse(self, code: str) -> None:
        status, message = _ERRORS[code]
        if code == "GatedRepo" and not self._token:
            status = HTTPStatus.UNAUTHORIZED
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _route(self, path: list[str], query: dict[str, list[str]], body: str) -> None:
        if path[:1] == ["api"] and len(path) >= 4 and path[1] in ("models", "datasets"):
            self._api(path[1], "/".join(path[2:4]), path[4:], query, body)
            return
        kind = "datasets" if path[:1] == ["datasets"] else "models"
        rest = path[1:] if kind == "datasets" else path
        if len(rest) >= 5 and rest[2] == "resolve":
            repository = self._repository(kind, "/".join(rest[:2]))
            self._check_content(repository)
            commit = self._commit(repository, rest[3])
            self._file(repository, commit, "/".join(rest[4:]))
            return
        self._send(HTTPStatus.NOT_FOUND, b"no such page")

    def _api(self, kind: str, name: str, rest: list[str], query: dict[str, list[str]], body: str) -> None:
        repository = self._repository(kind, name)
        if not rest or rest[0] == "revision":
            commit = self._commit(repository, rest[1] if rest else "main")
            self._json(self._info(repository, commit))
        elif rest[0] == "auth-check":
            self._check_content(repository)
            self._json({})
        elif rest[0] == "refs":
            branches = [
                {"name": key, "ref": f"refs/heads/{key}", "targetCommit": repository.commit(key)}
                for key in repository.revisions
            ]
            self._json({"branches": branches, "converts": [], "tags": []})
        elif rest[0] == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json(self._tree(repository, self._commit(repository, rest[1]), "/".join(rest[2:]), recursive))
        elif rest[0] == "paths-info":
            form = json.loads(body) if body.startswith("{") else parse_qs(body)
            paths = form.get("paths", [])
            commit = self._commit(repository, rest[1])
            self._json(
                [
                    entry
                    for path in ([paths] if isinstance(paths, str) else paths)
                    for entry in self._entry(repository, commit, path)
                ]
            )
        else:
            self._send(HTTPStatus.NOT_FOUND, b"no such interface")

    def _repository(self, kind: str, name: str) -> Repository:
        found = self.hub.find(kind, name)
        if found is None or (found.access == "private" and self._token != self.hub.token):
            raise _Refused("RepoNotFound")
        return found

    def _check_content(self, repository: Repository) -> None:
        """A gated repository's description is public, its files are not."""
        if repository.access == "gated" and self._token != self.hub.token:
            raise _Refused("GatedRepo")

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.commit(revision)
        if commit is None:
            raise _Refused("RevisionNotFound")
        return commit

    def _info(self, repository: Repository, commit: str) -> dict[str, Any]:
        return {
            "_id": _sha(repository.name)[:24],
            "id": repository.name,
            "sha": commit,
            "private": repository.access == "private",
            "gated": "manual" if repository.access == "gated" else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in repository.files(commit)],
        }

    def _tree(self, repository: Repository, commit: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        self._check_content(repository)
        inside = f"{folder}/" if folder else ""
        paths = [path for path in repository.files(commit) if path.startswith(inside)]
        if folder and not paths:
            raise _Refused("EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for path in paths:
            parts = path.removeprefix(inside).split("/")
            for depth in range(1, len(parts) + 1 if recursive else 2):
                name = inside + "/".join(parts[:depth])
                entries.setdefault(name, self._entry(repository, commit, name)[0])
        return list(entries.values())

    def _entry(self, repository: Repository, commit: str, path: str) -> list[dict[str, Any]]:
        files = repository.files(commit)
        if path in files:
            return [_described(path, files[path])]
        if any(name.startswith(f"{path}/") for name in files):
            return [{"type": "directory", "path": path, "size": 0, "oid": _sha(path)}]
        return []

    def _file(self, repository: Repository, commit: str, path: str) -> None:
        data = repository.files(commit).get(path)
        headers = {"X-Repo-Commit": commit}
        if data is None:
            status, message = _ERRORS["EntryNotFound"]
            self._send(status, b"", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": message})
            return
        headers |= {"ETag": f'"{_sha(data)}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = self.headers.get("Range", "")
        if self.command == "GET" and wanted.startswith("bytes="):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.hub.sent += last + 1 - first
            self._send(HTTPStatus.PARTIAL_CONTENT, data[first : last + 1], headers)
            return
        self.hub.sent += len(data) if self.command == "GET" else 0
        self._send(HTTPStatus.OK, data, headers)

    def _json(self, value: object) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: HTTPStatus, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _described(path: str, data: bytes) -> dict[str, Any]:
    """A file of a tree, with the hash of git's blob; of weights git has a pointer, which tells their own hash."""
    found = {"type": "file", "path": path, "size": len(data)}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
        lfs = {"oid": digest, "size": len(data), "pointerSize": len(pointer)}
        return {**found, "oid": _git(pointer), "lfs": lfs}
    return {**found, "oid": _git(data)}


def _git(data: bytes) -> str:
    return _sha(b"blob %d\0" % len(data) + data)


def _sha(data: str | bytes) -> str:
    return hashlib.sha1(data if isinstance(data, bytes) else data.encode()).hexdigest()
