"""A small client of the API server: dicts in, dicts out, and a watch that another thread can end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import requests

Object = dict[str, Any]
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server said no: `status` is the HTTP code, `body` its Status object."""

    def __init__(self, method: str, path: str, status: int, body: Object) -> None:
        super().__init__(f"{method} {path}: {status} {body.get('reason', '')}: {body.get('message', '')}")
        self.status = status
        self.body = body


class Api:
    """One identity at one API server: a client certificate, or a bearer token."""

    def __init__(
        self, server: str, authority: str, *, certificate: tuple[str, str] | None = None, token: str | None = None
    ) -> None:
        self.server = server
        self._authority = authority
        self._certificate = certificate
        self._token = token
        self._local = threading.local()

    def _session(self) -> requests.Session:
        # A requests session is not made for use by several threads at once.
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = False
            session.verify = self._authority
            session.cert = self._certificate
            if self._token:
                session.headers["Authorization"] = f"Bearer {self._token}"
        return session

    def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> Object:
        """One request; the answer's object.

        Errors: ApiError for any answer of 400 or above; requests.ConnectionError when nobody answers.
        """
        answer = self._session().request(
            method,
            self.server + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
            timeout=30,
        )
        try:
            document = answer.json()
        except requests.JSONDecodeError:
            document = {"message": answer.text}
        if answer.status_code >= 400:
            raise ApiError(method, path, answer.status_code, document)
        result: Object = document
        return result

    def get(self, path: str, **query: str) -> Object:
        return self.call("GET", path, None, **query)

    def find(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return self.call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, body: Object) -> Object:
        return self.call("POST", path, body)

    def patch(self, path: str, body: Object, content_type: str = MERGE, **query: str) -> Object:
        return self.call("PATCH", path, body, content_type=content_type, **query)

    def delete(self, path: str, body: Object | None = None) -> Object:
        return self.call("DELETE", path, body)

    def watch(self, path: str, **query: str) -> Watch:
        """The changes of a collection, from the `resourceVersion` given in the query."""
        answer = self._session().get(
            self.server + path, params={**query, "watch": "true"}, stream=True, timeout=(10, None)
        )
        if answer.status_code >= 400:
            raise ApiError("WATCH", path, answer.status_code, answer.json())
        return Watch(answer)


class Watch:
    """Events of an open watch; `close` from any thread ends the iteration."""

    def __init__(self, answer: requests.Response) -> None:
        self._answer = answer
        connection = answer.raw.connection
        self._socket: socket.socket | None = connection.sock if connection is not None else None

    def __iter__(self) -> Iterator[Object]:
        try:
            for line in self._answer.iter_lines(chunk_size=None):
                if line:
                    yield json.loads(line)
        except (requests.RequestException, OSError, AttributeError):
            # The connection was cut, by `close` or by the server: either way the watch is over.
            return

    def close(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return
