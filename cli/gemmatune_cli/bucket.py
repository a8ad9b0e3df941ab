"""Reads what a run left: single objects of file:// and gs:// prefixes."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_cli.console import CommandError

_GOOGLE = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_TIMEOUT = (10.0, 60.0)
_LOGIN = "Log in: gcloud auth application-default login."


def read(uri: str) -> bytes | None:
    """The content of an object; None where there is none of this name.

    Raises:
        CommandError: it may not be read, or the storage does not answer.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return _read_file(Path(unquote(parts.path)))
    if parts.scheme == "gs" and parts.netloc:
        return _read_object(uri, parts.netloc, uri.removeprefix("gs://").partition("/")[2])
    raise CommandError(f"{uri} cannot be read from here", "Name a prefix with gs:// or file://.")


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}", "Read it as its owner.") from error


def _read_object(uri: str, bucket: str, name: str) -> bytes | None:
    """By the JSON API: one request needs no client library."""
    import requests
    from google.auth.exceptions import GoogleAuthError

    endpoint = os.environ.get(ENV_GCS_ENDPOINT)
    address = f"{endpoint or _GOOGLE}/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}?alt=media"
    try:
        if endpoint:
            answer = requests.get(address, timeout=_TIMEOUT)
        else:
            answer = requests.get(address, timeout=_TIMEOUT, headers=_authorization())
    except GoogleAuthError as error:
        raise CommandError(f"{uri}: no access to Google Cloud: {error}", _LOGIN) from error
    except requests.RequestException as error:
        raise CommandError(f"{uri}: the storage does not answer: {error}", "Check the network.") from error
    if answer.status_code == requests.codes.not_found:
        return None
    if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
        raise CommandError(f"{uri} may not be read", f"Ask for roles/storage.objectViewer on the bucket. {_LOGIN}")
    if not answer.ok:
        raise CommandError(f"{uri}: the storage answered {answer.status_code} {answer.reason}", "Try again.")
    return answer.content


def _authorization() -> dict[str, str]:
    """The header that the login of this machine gives. Raises GoogleAuthError where there is none."""
    import google.auth
    from google.auth.transport.requests import Request

    credentials, _ = google.auth.default(scopes=[_SCOPE])
    headers: dict[str, str] = {}
    credentials.before_request(Request(), "GET", _GOOGLE, headers)  # type: ignore[no-untyped-call]
    return headers
