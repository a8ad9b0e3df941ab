"""`python -m gemmatune_operator`: runs the operator, with KUBECONFIG or in a pod."""

from __future__ import annotations

import asyncio
import sys

import structlog
from kubernetes.aio.config import ConfigException

from gemmatune_operator import logs, options
from gemmatune_operator.process import Process, StoppedError


def main() -> None:
    """Reads the arguments and runs until told to stop."""
    found = options.read()
    logs.set_up(found.log_format)

    async def run() -> None:
        await Process(found).run()

    try:
        asyncio.run(run())
    except ConfigException as error:
        sys.exit(f"cannot log in to a cluster: {error}. Set KUBECONFIG, or run in a pod with a service account.")
    except StoppedError as error:
        structlog.get_logger(__name__).error("the operator cannot go on", reason=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
