"""`gft wait`: waits for the end of a run and says by its exit code which it was."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from gemmatune_api.base import seconds
from gemmatune_api.names import Phase
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.remote import Context, Look, Name, Namespace, Remote, remote
from gemmatune_cli.run import FAILED, INTERRUPTED, SUCCEEDED, ended

TIMED_OUT = 2


def _limit(text: str) -> str:
    try:
        seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def command(
    name: Name,
    namespace: Namespace = "",
    context: Context = "",
    timeout: Annotated[
        str, typer.Option("--timeout", help="How long to wait, such as 90s, 30m, 12h.", callback=_limit)
    ] = "24h",
) -> None:
    """Wait for the end of a run. Exit code 0: Succeeded, 1: Failed or deleted, 2: not ended in time.

    `kubectl wait --for=condition=Succeeded` would wait for ever on a run that failed.
    """
    found = remote(name, namespace, context)
    console = output()
    last: Look | None = None
    try:
        for last in found.looks(time.monotonic() + seconds(timeout)):
            if last.ended:
                break
    except TimeoutError:
        raise _late(found, timeout, last) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if last is None or not last.ended:
        raise CommandError(f"{found} was deleted")
    status = last.status
    if status.phase != Phase.SUCCEEDED:
        raise CommandError(f"{found} has failed, {status.reason}: {status.message}", status.remedy, FAILED)
    console.print(f"{found} has succeeded: {status.message}")
    raise typer.Exit(SUCCEEDED)


def _late(found: Remote, timeout: str, last: Look | None) -> CommandError:
    late = f"{found} has not ended within {timeout}: "
    if last is None:
        return CommandError(f"{late}the API server does not answer", "Check the network.", TIMED_OUT)
    status = last.status
    if last.current or not ended(status):
        message = f"{late}it is {status.phase or Phase.PENDING}. {status.message}"
        return CommandError(message.rstrip(), status.remedy, TIMED_OUT)
    message = f"{late}it had failed, and no operator has looked at the correction or the retry yet"
    return CommandError(message, f"`gft doctor -n {found.namespace}` looks for the operator.", TIMED_OUT)
