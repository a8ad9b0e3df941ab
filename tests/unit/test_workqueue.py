"""The work queue: deduplication, priorities, one worker per key, backoff, delays, and a graceful end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from gemmatune_operator import workqueue
from gemmatune_operator.workqueue import BACKOFF_CAP_SECONDS, JITTER, Priority, WorkQueue, backoff

DEADLINE = 5.0


class Desk:
    """A worker whose work the test ends by hand."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.active: dict[str, asyncio.Future[float | Priority | None]] = {}
        self.most = 0

    async def handle(self, key: str) -> float | Priority | None:
        assert key not in self.active, f"{key} is worked on twice at once"
        self.started.append(key)
        self.active[key] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.active))
        try:
            return await self.active[key]
        finally:
            del self.active[key]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until the work has come that far."""

        async def wait() -> None:
            while not holds():  # noqa: ASYNC110  (the queue tells nobody when it is idle)
                await asyncio.sleep(0.001)

        await asyncio.wait_for(wait(), DEADLINE)

    def finish(self, key: str, wake: float | Priority | None = None) -> None:
        self.active[key].set_result(wake)

    def fail(self, key: str) -> None:
        self.active[key].set_exception(RuntimeError("no luck"))


async def running(workers: int = 1) -> tuple[WorkQueue[str], Desk, asyncio.Task[None]]:
    desk = Desk()
    queue: WorkQueue[str] = WorkQueue(desk.handle, workers=workers)
    return queue, desk, asyncio.create_task(queue.run())


async def ended(queue: WorkQueue[str], task: asyncio.Task[None]) -> None:
    queue.stop()
    await asyncio.wait_for(task, DEADLINE)


async def test_a_key_waits_once() -> None:
    queue, desk, task = await running()
    for _ in range(5):
        queue.add("a")
    assert queue.depth == 1
    await desk.until(lambda: desk.started == ["a"])
    desk.finish("a")
    await desk.until(lambda: not desk.active and queue.depth == 0)
    assert desk.started == ["a"]
    await ended(queue, task)


async def test_added_while_worked_on_it_comes_again_once() -> None:
    queue, desk, task = await running(workers=3)
    queue.add("a")
    await desk.until(lambda: desk.started == ["a"])
    for _ in range(5):
        queue.add("a")
    queue.add("b")
    await desk.until(lambda: desk.started == ["a", "b"])
    desk.finish("a")
    await desk.until(lambda: desk.started == ["a", "b", "a"])
    desk.finish("a")
    desk.finish("b")
    await desk.until(lambda: not desk.active)
    assert (desk.started, queue.depth) == (["a", "b", "a"], 0)
    await ended(queue, task)


async def test_creations_come_before_the_rest() -> None:
    queue, desk, task = await running()
    queue.add("busy")
    await desk.until(lambda: desk.started == ["busy"])
    queue.add("status", Priority.ROUTINE)
    queue.add("risen", Priority.ROUTINE)
    queue.add("new", Priority.URGENT)
    queue.add("risen", Priority.URGENT)
    queue.add("new", Priority.ROUTINE)
    for expected in ("new", "risen", "status"):
        desk.finish(desk.started[-1])
        await desk.until(lambda expected=expected: desk.started[-1] == expected)  # type: ignore[misc]
    desk.finish("status")
    await ended(queue, task)


async def test_what_is_only_to_be_told_waits_for_a_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "QUIET_SECONDS", 0.2)
    queue, desk, task = await running(workers=2)
    queue.add("new", Priority.URGENT)
    await desk.until(lambda: desk.started == ["new"])
    desk.finish("new", Priority.PATIENT)
    await desk.until(lambda: queue.depth == 1)
    began = time.monotonic()
    queue.add("next", Priority.URGENT)
    await desk.until(lambda: desk.started == ["new", "next"])
    await desk.until(lambda: desk.started == ["new", "next", "new"])
    assert time.monotonic() - began >= 0.15, "a worker was free all the time"
    for key in ("new", "next"):
        desk.finish(key)
    await ended(queue, task)


async def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "QUIET_SECONDS", 60.0)
    monkeypatch.setattr(workqueue, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(workqueue, "LOOK_AGAIN_SECONDS", 0.02)
    queue, desk, task = await running(workers=2)
    queue.add("new", Priority.URGENT)
    await desk.until(lambda: desk.started == ["new"])
    desk.finish("new", Priority.PATIENT)
    await desk.until(lambda: desk.started == ["new", "new"])
    desk.finish("new")
    await ended(queue, task)


async def test_patience_ends_with_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "QUIET_SECONDS", 60.0)
    queue, desk, task = await running()
    queue.add("new", Priority.URGENT)
    await desk.until(lambda: desk.started == ["new"])
    desk.finish("new", Priority.PATIENT)
    await desk.until(lambda: queue.depth == 1)
    queue.add("new", Priority.ROUTINE)
    await desk.until(lambda: desk.started == ["new", "new"])
    desk.finish("new")
    await ended(queue, task)


async def test_an_urgent_addition_during_work_stays_urgent() -> None:
    queue, desk, task = await running()
    queue.add("a")
    await desk.until(lambda: desk.started == ["a"])
    queue.add("b", Priority.ROUTINE)
    queue.add("a", Priority.ROUTINE)
    queue.add("a", Priority.URGENT)
    desk.finish("a")
    await desk.until(lambda: desk.started == ["a", "a"])
    desk.finish("a")
    await desk.until(lambda: desk.started == ["a", "a", "b"])
    desk.finish("b")
    await ended(queue, task)


async def test_workers_are_bounded() -> None:
    queue, desk, task = await running(workers=3)
    for key in "abcdefgh":
        queue.add(key)
    done = 0
    while done < 8:
        await desk.until(lambda: bool(desk.active))
        desk.finish(next(iter(desk.active)))
        done += 1
        await desk.until(lambda done=done: len(desk.started) - len(desk.active) == done)  # type: ignore[misc]
    assert desk.most == 3
    assert sorted(desk.started) == list("abcdefgh")
    await ended(queue, task)


async def test_the_answer_brings_the_key_back() -> None:
    queue, desk, task = await running()
    queue.add("a")
    await desk.until(lambda: desk.started == ["a"])
    desk.finish("a", wake=0.01)
    await desk.until(lambda: desk.started == ["a", "a"])
    desk.finish("a", wake=3600)
    await desk.until(lambda: not desk.active)
    queue.add("a")
    await desk.until(lambda: len(desk.started) == 3)
    desk.finish("a")
    await ended(queue, task)


async def test_of_several_delays_the_earliest_holds() -> None:
    queue, desk, task = await running()
    queue.add_after("a", 3600)
    queue.add_after("a", 0.01)
    queue.add_after("a", 1800)
    await desk.until(lambda: desk.started == ["a"])
    desk.finish("a")
    await desk.until(lambda: not desk.active)
    assert queue.depth == 0
    await ended(queue, task)


async def test_failures_back_off_and_success_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def quick(failures: int) -> float:
        seen.append(failures)
        return 0.001

    monkeypatch.setattr(workqueue, "backoff", quick)
    queue, desk, task = await running()
    queue.add("a")
    for count in (1, 2, 3):
        await desk.until(lambda count=count: len(desk.started) == count and "a" in desk.active)  # type: ignore[misc]
        desk.fail("a")
    await desk.until(lambda: len(desk.started) == 4)
    desk.finish("a")
    await desk.until(lambda: not desk.active)
    queue.add("a")
    await desk.until(lambda: len(desk.started) == 5)
    desk.fail("a")
    await desk.until(lambda: len(desk.started) == 6)
    desk.finish("a")
    assert seen == [1, 2, 3, 1]
    await ended(queue, task)


def test_backoff() -> None:
    for failures, middle in ((1, 1), (2, 2), (5, 16), (20, BACKOFF_CAP_SECONDS), (10_000, BACKOFF_CAP_SECONDS)):
        delays = [backoff(failures) for _ in range(200)]
        assert all(middle * (1 - JITTER) <= delay <= middle * (1 + JITTER) for delay in delays)
        assert len(set(delays)) > 100, "jitter spreads them"


async def test_a_graceful_end() -> None:
    """Work under way is finished, what waits is left, and nothing is taken any more."""
    queue, desk, task = await running()
    queue.add("a")
    queue.add("b")
    queue.add_after("c", 0.01)
    await desk.until(lambda: desk.started == ["a"])
    queue.stop()
    queue.add("d")
    await asyncio.sleep(0)
    assert not task.done()
    desk.finish("a", wake=0.001)
    await asyncio.wait_for(task, DEADLINE)
    assert desk.started == ["a"]


async def test_measures() -> None:
    waits: list[float] = []
    works: list[bool] = []
    done = asyncio.Event()

    async def handle(key: str) -> float | None:
        if key == "bad":
            raise RuntimeError("no luck")
        return None

    def worked(seconds: float, failed: bool) -> None:
        assert seconds >= 0
        works.append(failed)
        if len(works) == 2:
            done.set()

    queue: WorkQueue[str] = WorkQueue(handle, workers=1, picked=waits.append, worked=worked)
    task = asyncio.create_task(queue.run())
    queue.add("good")
    queue.add("bad")
    await asyncio.wait_for(done.wait(), DEADLINE)
    assert works == [False, True]
    assert len(waits) == 2
    assert queue.oldest_work == 0
    await ended(queue, task)
