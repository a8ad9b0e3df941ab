"""Shared reads: one for all who asked before it began, and none that is older than the question."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gemmatune_operator.ports import UnavailableError
from gemmatune_operator.sharing import SharedReads

ONE = ("ConfigMap", "team", "gemmatune-defaults")
OTHER = ("ConfigMap", "others", "gemmatune-defaults")


class Server:
    """Answers each read when the test says so, with the number of the read."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, str, str]] = []
        self.open: list[asyncio.Future[None]] = []

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        self.reads.append((kind, namespace, name))
        number = len(self.reads)
        self.open.append(asyncio.get_running_loop().create_future())
        await self.open[-1]
        return {"number": number}

    def answer(self, read: int, error: Exception | None = None) -> None:
        """To the read with that number."""
        if error is None:
            self.open[read - 1].set_result(None)
        else:
            self.open[read - 1].set_exception(error)


class Askers:
    """Looks that ask."""

    def __init__(self) -> None:
        self.server = Server()
        self.shared = SharedReads()

    async def ask(self, key: tuple[str, str, str] = ONE) -> asyncio.Task[Any]:
        """One that has asked."""
        task = asyncio.create_task(self.shared.get(self.server, *key))  # type: ignore[arg-type]
        await self.settle()
        return task

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_who_asks_while_a_read_is_under_way_waits_for_the_next_and_shares_it() -> None:
    looks = Askers()
    first = await looks.ask()
    later = [await looks.ask() for _ in range(3)]
    assert len(looks.server.reads) == 1
    looks.server.answer(1)
    assert await first == {"number": 1}
    await looks.settle()
    assert len(looks.server.reads) == 2, "one read for the three"
    last = await looks.ask()
    looks.server.answer(2)
    assert [await look for look in later] == [{"number": 2}] * 3
    await looks.settle()
    looks.server.answer(3)
    assert await last == {"number": 3}, "asked after the second began"


async def test_another_namespace_waits_for_nobody() -> None:
    looks = Askers()
    first, other = await looks.ask(ONE), await looks.ask(OTHER)
    assert looks.server.reads == [ONE, OTHER]
    looks.server.answer(2)
    assert await other == {"number": 2}
    looks.server.answer(1)
    assert await first == {"number": 1}


async def test_a_failed_read_fails_those_who_share_it_and_not_the_next() -> None:
    looks = Askers()
    first = await looks.ask()
    later = [await looks.ask() for _ in range(2)]
    looks.server.answer(1, UnavailableError("no answer"))
    with pytest.raises(UnavailableError):
        await first
    await looks.settle()
    looks.server.answer(2)
    assert [await look for look in later] == [{"number": 2}] * 2


async def test_a_look_that_is_cancelled_takes_nothing_from_the_others() -> None:
    looks = Askers()
    gone = await looks.ask()
    gone.cancel()
    stays = await looks.ask()
    looks.server.answer(1)
    await looks.settle()
    looks.server.answer(2)
    assert await stays == {"number": 2}
    assert gone.cancelled()
