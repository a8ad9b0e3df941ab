"""Structured logs on standard error; lines of a look carry the namespace and name of its run."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import structlog

log = structlog.get_logger(__name__)


def set_up(style: str) -> None:
    """JSON lines, or coloured text with style console."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if style == "console" else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # it warns of every single span that is dropped
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )


def of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of the event loop: says of a watch stream that did not close with the loop no more than that.

    asyncio closes kopf's streams, which lie in each other, all at once at the end; nobody reads them any more then.
    """
    if "asyncgen" in context:
        log.debug("a stream did not close", stream=repr(context["asyncgen"]), error=repr(context.get("exception")))
    else:
        loop.default_exception_handler(context)
