"""The floor: kopf as it comes, with one index and an empty handler for the resource, watching one namespace."""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import Any

import kopf

from gemmatune_api import names
from gemmatune_operator.handlers import _login

KIND = (names.GROUP, names.VERSION, names.PLURAL)


def registry() -> kopf.OperatorRegistry:
    """One index, one handler."""
    handlers = kopf.OperatorRegistry()

    async def runs(namespace: str, name: str, spec: Any, **_: Any) -> dict[tuple[str, str], str]:
        return {(namespace, name): str(spec["output"]["uri"])}

    async def nothing(**_: Any) -> None:
        return None

    kopf.index(*KIND, registry=handlers)(runs)
    kopf.on.event(*KIND, registry=handlers)(nothing)
    kopf.on.login(registry=handlers)(_login)
    return handlers


def main() -> None:
    """Runs until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", required=True)
    namespace = parser.parse_args().namespace
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.chunk_size = 500
    asyncio.run(kopf.operator(registry=registry(), settings=settings, standalone=True, namespaces=[namespace]))


if __name__ == "__main__":
    main()
