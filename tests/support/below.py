"""Below the check for what is not built yet: settings of an installation that plans and renders every valid shape.

`Settings.refused` is the table that acceptance goes by; these settings empty it, for `reconcile`, `Play(...).settings`
or, as a process, `OperatorProcess(..., command=PROCESS)`. No option, variable or chart value reaches that field.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gemmatune_operator.settings import Settings

BELOW = Settings(refused=())
PROCESS = ("-m", "tests.support.below")
"""The operator with its usual options, and nothing refused as not built yet."""


def main() -> None:
    """Runs the operator."""
    from gemmatune_operator import options
    from gemmatune_operator.logs import set_up
    from gemmatune_operator.process import Process

    found = options.read()
    set_up(found.log_format)

    async def run() -> None:
        await Process(replace(found, settings=replace(found.settings, refused=()))).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
