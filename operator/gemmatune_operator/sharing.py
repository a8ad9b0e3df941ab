"""One read of the API server for all looks that asked before it began: a burst of new runs asks the same."""

from __future__ import annotations

import asyncio

from gemmatune_operator.ports import Cluster, Object

Key = tuple[str, str, str]
"""Kind, namespace and name."""


class SharedReads:
    """Nobody gets an answer that is older than the question: who asks while a read is under way waits for the next."""

    def __init__(self) -> None:
        self._next: dict[Key, asyncio.Task[Object | None]] = {}
        self._under_way: dict[Key, asyncio.Lock] = {}

    async def get(self, cluster: Cluster, kind: str, namespace: str, name: str) -> Object | None:
        """The object, read live; None where it does not exist. Not to be changed: others have the same.

        Raises:
            RefusedError, UnavailableError.
        """
        key = (kind, namespace, name)
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._read(cluster, key))
        return await asyncio.shield(task)  # a caller that is cancelled takes nothing from the others

    async def _read(self, cluster: Cluster, key: Key) -> Object | None:
        async with self._under_way.setdefault(key, asyncio.Lock()):
            del self._next[key]
            return await cluster.get(*key)
