"""The wish to stop: SIGTERM and SIGINT set a flag that the trainer looks at between pieces of work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.logs import log

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Whether the process was asked to stop, and by what."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._name = ""
        self.looked: Callable[[], None] = lambda: None
        """Called at every look at the flag: whoever looks is alive."""

    def install(self) -> None:
        """Lets SIGTERM and SIGINT raise the flag instead of ending the process (main thread only)."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)

    def request(self, name: str) -> None:
        """Raises the flag."""
        self._name = self._name or name
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody wants the process to stop."""
        self.looked()
        return self._event.is_set()

    @property
    def by(self) -> str:
        """Name of the signal."""
        return self._name

    def check(self, doing: str) -> None:
        """Between two pieces of work outside training: ends the process if it shall stop.

        Raises:
            Interrupted: the flag is up.
        """
        if self.requested:
            log.info("stopping", signal=self.by, before=doing)
            raise Interrupted(f"{self.by} came before {doing}: there is nothing new to save")
