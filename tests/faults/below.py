"""The operator without the check for what is not built yet: it runs several nodes before any backend trains on them."""

from __future__ import annotations

import asyncio
import dataclasses

from gemmatune_operator import logs, options
from gemmatune_operator.process import Process


def main() -> None:
    """The operator's process as it is, but for that check."""
    found = options.read()
    logs.set_up(found.log_format)
    settings = dataclasses.replace(found.settings, refused=())
    asyncio.run(Process(dataclasses.replace(found, settings=settings)).run())


if __name__ == "__main__":
    main()
