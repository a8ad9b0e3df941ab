"""`python -m gemmatune_operator`: runs the operator, with KUBECONFIG or in a pod."""

from __future__ import annotations

import asyncio

from gemmatune_operator import options
from gemmatune_operator.process import Process, set_up_logs


def main() -> None:
    """Reads the arguments and runs until told to stop."""
    found = options.read()
    set_up_logs(found.log_format)

    async def run() -> None:
        await Process(found).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
