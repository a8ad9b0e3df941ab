"""How long an API server may be away while a run is followed, and from when that counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import urllib3
from kubernetes import client

from gemmatune_cli.console import CommandError

OUTAGE_SECONDS = 300.0
"""How long an API server that answered before may be away while a run is followed."""
PAUSE_SECONDS = 2.0
"""How long after a failure it is asked again."""

T = TypeVar("T")


class Outage:
    """The time in which an API server gives no answer: it begins with the first failure, and any answer ends it.

    A watch says nothing for minutes where nothing happens, so that the last change tells nothing of how long the API
    server has been away.

    Args:
        answered: whether it has answered already; one that never has is not waited for.
    """

    def __init__(self, *, answered: bool = False) -> None:
        self._answered = answered
        self._began: float | None = None

    def over(self) -> None:
        """It has answered."""
        self._answered, self._began = True, None

    def bears(self, error: BaseException | None) -> bool:
        """Whether it is worth asking again after this error."""
        if not self._answered or not _passes(error):
            return False
        now = time.monotonic()
        if self._began is None:
            self._began = now
        return now - self._began <= OUTAGE_SECONDS

    def outlasted(self, asks: Callable[[], T]) -> T:
        """What `asks` gives, asked again while the API server is away.

        Raises:
            CommandError: of `asks`, once it is away for too long, and at once where asking again would not help.
        """
        while True:
            try:
                found = asks()
            except CommandError as error:
                if not self.bears(error.__cause__):
                    raise
            else:
                self.over()
                return found
            time.sleep(PAUSE_SECONDS)


def _passes(error: BaseException | None) -> bool:
    """Whether an error is one of an API server that is away or overloaded, and no answer to what was asked."""
    if isinstance(error, client.ApiException):
        return bool(error.status in (429, *range(500, 600)))
    return isinstance(error, urllib3.exceptions.HTTPError)
