"""The wish to stop: SIGTERM and SIGINT set a flag that the trainer looks at between pieces of work.

While the main thread is in native code, as in the minutes of a compilation, Python cannot call a signal's handler. A
thread sees the signal all the same, and ends the process where the main thread does not hear of it in time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from gemmatune_trainer.errors import Interrupted
from gemmatune_trainer.logs import log

SIGNALS = (signal.SIGTERM, signal.SIGINT)
HEARD_SECONDS = 2.0
"""How soon the main thread hears of a signal where it runs Python; later it counts as busy with native code."""
_LOOK_SECONDS = 0.1

Unheard = Callable[[float], Interrupted | None]
"""What the process ends with when a signal is so many seconds old and not heard; None: it has more time."""


class StopFlag:
    """Whether the process was asked to stop, and by what."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._name = ""
        self._since = 0.0
        self._breaks = False
        self._heard = threading.Event()
        self._unheard: Unheard | None = None
        self.looked: Callable[[], None] = lambda: None
        """Called at every look at the flag: whoever looks is alive."""

    def install(self, end: Callable[[Interrupted], None] | None = None) -> None:
        """Lets SIGTERM and SIGINT raise the flag instead of ending the process (main thread only).

        `end` ends the process, from any thread, where the main thread does not hear of a signal.
        """
        for number in SIGNALS:
            signal.signal(number, self._handle)
        if end is not None:
            told, telling = os.pipe()
            os.set_blocking(telling, False)
            signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(told, end), name="signals", daemon=True).start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)
        if self._breaks:
            self._breaks = False
            self._heard.set()
            raise _BrokenOff

    def _listen(self, told: int, end: Callable[[Interrupted], None]) -> None:
        """Waits for a signal, and then for the main thread to hear of it."""
        while not (numbers := [number for number in os.read(told, 64) if number in SIGNALS]):
            pass
        self.request(signal.Signals(numbers[0]).name)
        while not self._heard.wait(_LOOK_SECONDS):
            unheard = self._unheard
            ending = unheard(time.monotonic() - self._since) if unheard is not None else None
            if ending is not None:
                end(ending)

    @contextmanager
    def unheard(self, ending: Unheard) -> Iterator[None]:
        """Work during which the main thread may be in native code when a signal comes."""
        before, self._unheard = self._unheard, ending
        try:
            yield
        finally:
            self._unheard = before

    def nothing_new(self, doing: str, step: int | None = None) -> AbstractContextManager[None]:
        """The same, where an end loses nothing: the steps done so far are saved."""

        def ending(waited: float) -> Interrupted | None:
            return self._interrupted(f"during {doing}", step) if waited >= HEARD_SECONDS else None

        return self.unheard(ending)

    def _is_set(self) -> bool:
        found = self._event.is_set()
        if found:
            self._heard.set()
        return found

    def request(self, name: str) -> None:
        """Raises the flag."""
        if not self._event.is_set():
            self._name, self._since = name, time.monotonic()
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody wants the process to stop."""
        self.looked()
        return self._is_set()

    @property
    def raised(self) -> bool:
        """The same, asked by who only waits: no sign of life."""
        return self._is_set()

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
            raise self._interrupted(f"before {doing}", step)

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
                if self._is_set():
                    raise _BrokenOff
                with self.nothing_new(doing, step):
                    yield
            finally:
                self._breaks = False
        except _BrokenOff as error:
            log.info("stopping", signal=self.by, during=doing)
            raise self._interrupted(f"during {doing}", step) from error

    def _interrupted(self, when: str, step: int | None) -> Interrupted:
        return Interrupted(f"{self.by} came {when}: there is nothing new to save", step=step)


class _BrokenOff(BaseException):
    """Raised by the signal's handler; no library takes it for an error of its own."""
