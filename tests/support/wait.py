"""Wait for a condition with a deadline; no test sleeps for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T],
    what: str,
    *,
    seconds: float = 60.0,
    interval: float = 0.05,
    detail: Callable[[], object] | None = None,
) -> T:
    """Call `condition` until its answer is true, and return that answer.

    Errors: TimeoutError after `seconds`, naming `what` was awaited and, where `detail` is given, what it says then.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            extra = f"; {detail()}" if detail else f"; last answer: {answer!r}"
            raise TimeoutError(f"waited {seconds:g} s for {what}{extra}")
        time.sleep(interval)
