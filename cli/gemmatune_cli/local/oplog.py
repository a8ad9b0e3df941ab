"""Where the operator's log lines of a run on this machine go: into the run's folder, not onto the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

FILE = "operator.log"


@contextmanager
def logged_to(folder: Path) -> Iterator[None]:
    """Appends what the reconcile loop logs to operator.log in the folder, as JSON lines."""
    before = structlog.get_config()
    with (folder / FILE).open("a", encoding="utf-8") as file:
        structlog.configure(
            processors=[
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.PrintLoggerFactory(file),
            cache_logger_on_first_use=False,
        )
        try:
            yield
        finally:
            structlog.configure(**before)
