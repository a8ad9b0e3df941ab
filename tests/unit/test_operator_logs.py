"""What the operator's log says of the event loop: a stack only of what is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from gemmatune_operator import logs

opened: list[AsyncIterator[int]] = []


async def stream() -> AsyncIterator[int]:
    """Does not want to be closed, as kopf's streams in each other."""
    try:
        yield 1
    except GeneratorExit:
        raise RuntimeError("not now") from None


async def leave_a_stream_open() -> None:
    asyncio.get_running_loop().set_exception_handler(logs.of_loop)
    opened.append(stream())
    await anext(opened[-1])


async def fail_in_the_background() -> None:
    asyncio.get_running_loop().set_exception_handler(logs.of_loop)
    asyncio.get_running_loop().call_soon(lambda: 1 // 0)
    await asyncio.sleep(0)


def test_a_stream_that_does_not_close_with_the_loop_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asyncio.run(leave_a_stream_open())
    assert caplog.records == []


def test_what_fails_in_the_loop_is_an_error_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asyncio.run(fail_in_the_background())
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [("ERROR", True)]
