"""A file over HTTP, hashed on its way: a connection that breaks is taken up where it broke."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests

from gemmatune_trainer.errors import HubUnavailable, text_of

RETRIES = 5
"""Breaks in a row, without a byte between them, that end a download."""
BROKEN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
"""What a connection that ends amid a file is told as."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file as it arrived: its bytes, those announced (-1: nobody said), its hash, and headers of the last answer."""

    size: int
    announced: int
    digest: bytes
    headers: Mapping[str, str]


def download(
    name: str,
    ask: Callable[[int], requests.Response],
    target: Path,
    new_digest: Callable[[], Any],
    size: int | None = None,
) -> Arrived:
    """Writes a file that `ask(begin)` sends from byte `begin` on; without `size` the answers say how long it is.

    Raises:
        HubUnavailable: the connection breaks again and again; and what `ask` raises.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, done, failures = new_digest(), 0, 0
    whole = -1 if size is None else size
    headers: Mapping[str, str] = {}
    with target.open("wb") as sink:
        while whole < 0 or done < whole:
            before = done
            try:
                answer = ask(done)
                headers = answer.headers
                if done and answer.status_code != HTTPStatus.PARTIAL_CONTENT:
                    sink.seek(0)
                    digest, done = new_digest(), 0
                if size is None:
                    whole = done + int(headers["Content-Length"]) if "Content-Length" in headers else -1
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    sink.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
            except BROKEN as error:
                failures = 0 if done > before else failures + 1
                if failures >= RETRIES:
                    raise HubUnavailable(f"{name}: {text_of(error)}") from error
            else:
                break
        sink.truncate()
    return Arrived(done, whole, digest.digest(), headers)
