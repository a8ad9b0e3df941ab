"""The wish to stop: SIGTERM and SIGINT set a flag that the trainer looks at between pieces of work."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.logs import log

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Whether the process was asked to stop, and by what."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._name = ""
        self._since = 0.0
        self._breaks = False
        self.looked: Callable[[], None] = lambda: None
        """Called at every look at the flag: whoever looks is alive."""

    def install(self) -> None:
        """Lets SIGTERM and SIGINT raise the flag instead of ending the process (main thread only)."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)
        if self._breaks:
            self._breaks = False
            raise _BrokenOff

    def request(self, name: str) -> None:
        """Raises the flag."""
        if not self._event.is_set():
            self._name, self._since = name, time.monotonic()
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody wants the process to stop."""
        self.looked()
        return self._event.is_set()

    @property
    def raised(self) -> bool:
        """The same, asked by who only waits: no sign of life."""
        return self._event.is_set()

    def left(self, seconds: float) -> float:
        """What is left of the `seconds` that whoever wants the process to stop gives it."""
        return max(0.0, self._since + seconds - time.monotonic())

    @property
    def by(self) -> str:
        """Name of the signal."""
        return self._name

    def check(self, doing: str, step: int | None = None) -> None:
        """Between two pieces of work outside training: ends the process if it shall stop.

        `step` is the one whose checkpoint is saved already.

        Raises:
            Interrupted: the flag is up.
        """
        if self.requested:
            log.info("stopping", signal=self.by, before=doing)
            raise Interrupted(f"{self.by} came before {doing}: there is nothing new to save", step=step)

    @contextmanager
    def at_once(self, doing: str, step: int | None = None) -> Iterator[None]:
        """Work outside training that cannot look at the flag, and that may be broken off anywhere (main thread only).

        Raises:
            Interrupted: the flag is up, or goes up meanwhile.
        """
        self.check(doing, step)
        try:
            try:
                self._breaks = True
                if self._event.is_set():
                    raise _BrokenOff
                yield
            finally:
                self._breaks = False
        except _BrokenOff as error:
            log.info("stopping", signal=self.by, during=doing)
            raise Interrupted(f"{self.by} came during {doing}: there is nothing new to save", step=step) from error


class _BrokenOff(BaseException):
    """Raised by the signal's handler; no library takes it for an error of its own."""
