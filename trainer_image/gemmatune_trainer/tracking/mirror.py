"""Copies the files that a tracker writes here to the output: not at every value, and whole at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from gemmatune_trainer.storage import open_storage

UPLOAD_SECONDS = 60.0
"""Shortest time between two copies of files that grow."""
_PATIENCE_SECONDS = 20.0


class Mirror:
    """Files of a folder under a prefix of the output; its storage belongs to the tracker's thread alone."""

    def __init__(self, output: str, prefix: str, folder: Path) -> None:
        self._output = output
        self._prefix = prefix
        self._folder = folder
        self._copied = float("-inf")

    @property
    def uri(self) -> str:
        """Where the copies are."""
        return f"{self._output}/{self._prefix}"

    def copy(self, files: Iterable[Path], now: bool = False) -> None:
        """Copies the files, where the last copy is old enough or it must be `now`."""
        if not now and time.monotonic() - self._copied < UPLOAD_SECONDS:
            return
        named = {f"{self._prefix}/{file.relative_to(self._folder).as_posix()}": file for file in files}
        if named:
            open_storage(self._output, _PATIENCE_SECONDS).upload(named)
        self._copied = time.monotonic()
