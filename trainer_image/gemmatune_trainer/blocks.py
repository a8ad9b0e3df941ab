"""A remote file as a seekable stream, of which only the blocks that are read are fetched."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

BLOCK_BYTES = 1 << 20
_KEPT = 4


Block = Callable[[int], bytes]


def opener(size: int, fetch: Callable[[int, int], bytes]) -> Callable[[], io.BufferedReader]:
    """Opens a file of `size` bytes as often as wanted; `fetch(begin, end)` gets those from `begin` up to `end`.

    The newest blocks are kept: Parquet is read to and fro, and other files are opened to look what they are.
    """

    @lru_cache(maxsize=_KEPT)
    def block(number: int) -> bytes:
        begin = number * BLOCK_BYTES
        return fetch(begin, min(begin + BLOCK_BYTES, size))

    return lambda: io.BufferedReader(_Blocks(size, block))


class _Blocks(io.RawIOBase):
    def __init__(self, size: int, block: Block) -> None:
        self._size = size
        self._block = block
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer up to the end of a block."""
        if self._at >= self._size:
            return 0
        number, begin = divmod(self._at, BLOCK_BYTES)
        data = self._block(number)[begin : begin + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
