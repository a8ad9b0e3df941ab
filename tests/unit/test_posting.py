"""Events in the background: in order, after what is urgent, dropped where too many wait, all sent at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gemmatune_operator import posting
from gemmatune_operator.ports import Object
from gemmatune_operator.posting import Poster
from tests.support.situations import resource


class Sink:
    """Takes Events."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.objects: list[Object] = []

    async def emit(self, obj: Object, type_: str, reason: str, message: str) -> None:
        await asyncio.sleep(0)
        self.reasons.append(reason)
        self.objects.append(obj)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0.01)


async def test_in_the_background() -> None:
    sink = Sink()
    poster = Poster(sink.emit)
    running = asyncio.create_task(poster.run())
    for reason in ("Valid", "Preparing"):
        await poster.post(resource(), "Normal", reason, "")
    assert sink.reasons == [], "nobody waits for it"
    await until(lambda: len(sink.reasons) == 2)
    assert sink.reasons == ["Valid", "Preparing"]
    assert sink.objects[0]["metadata"].keys() == {"name", "namespace", "uid", "resourceVersion"}
    poster.stop()
    await running


async def test_what_is_urgent_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "PAUSE_SECONDS", 0.001)
    sink, busy, asked = Sink(), True, 0

    def is_busy() -> bool:
        nonlocal asked
        asked += 1
        return busy

    poster = Poster(sink.emit, is_busy)
    running = asyncio.create_task(poster.run())
    await poster.post(resource(), "Normal", "Valid", "")
    await until(lambda: asked > 5)
    assert sink.reasons == []
    busy = False
    await until(lambda: sink.reasons == ["Valid"])
    poster.stop()
    await running


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(posting, "PATIENCE_SECONDS", 0.01)
    sink = Sink()
    poster = Poster(sink.emit, lambda: True)
    running = asyncio.create_task(poster.run())
    await poster.post(resource(), "Normal", "Valid", "")
    await until(lambda: sink.reasons == ["Valid"])
    poster.stop()
    await running


async def test_too_many_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "LIMIT", 3)
    sink, dropped = Sink(), 0

    def drop() -> None:
        nonlocal dropped
        dropped += 1

    poster = Poster(sink.emit, dropped=drop)
    for number in range(5):
        await poster.post(resource(), "Normal", str(number), "")
    assert dropped == 2
    poster.stop()
    await poster.run()
    assert sink.reasons == ["0", "1", "2"], "what waits at the end is still recorded"
