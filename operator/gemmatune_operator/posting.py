"""Events are recorded in the background: they never hold up a look, and are dropped rather than piled up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from gemmatune_operator.ports import Object

Emit = Callable[[Object, str, str, str], Awaitable[None]]
"""Records an Event: resource, type, reason, message; never fails its caller."""
LIMIT = 5000
"""Events that wait at most."""
PAUSE_SECONDS = 0.05
"""Between two looks at whether something more urgent is under way."""
PATIENCE_SECONDS = 5.0
"""How long an Event waits for something more urgent."""


class Poster:
    """A bounded queue before a cluster's `emit`.

    Args:
        emit: records one Event.
        busy: whether something more urgent is under way.
        dropped: called for each Event that finds the queue full.
    """

    def __init__(
        self, emit: Emit, busy: Callable[[], bool] = lambda: False, dropped: Callable[[], None] = lambda: None
    ) -> None:
        self._emit, self._busy, self._dropped = emit, busy, dropped
        self._waiting: deque[tuple[Object, str, str, str]] = deque()
        self._some = asyncio.Event()
        self._stopping = False

    async def post(self, resource: Object, type_: str, reason: str, message: str) -> None:
        """Takes an Event to be recorded; it is gone where too many wait."""
        if len(self._waiting) >= LIMIT:
            self._dropped()
            return
        small = {"apiVersion": resource.get("apiVersion"), "kind": resource.get("kind")}
        self._waiting.append(({**small, "metadata": _reference(resource)}, type_, reason, message))
        self._some.set()

    async def run(self) -> None:
        """Records Events in their order until `stop`; what waits then is still recorded."""
        while True:
            if not self._waiting:
                if self._stopping:
                    return
                self._some.clear()
                await self._some.wait()
                continue
            waited = 0.0
            while self._busy() and waited < PATIENCE_SECONDS and not self._stopping:
                await asyncio.sleep(PAUSE_SECONDS)
                waited += PAUSE_SECONDS
            await self._emit(*self._waiting.popleft())

    def stop(self) -> None:
        """Ends `run` once nothing waits."""
        self._stopping = True
        self._some.set()


def _reference(resource: Object) -> Object:
    wanted = ("name", "namespace", "uid", "resourceVersion")
    return {name: value for name, value in resource["metadata"].items() if name in wanted}
