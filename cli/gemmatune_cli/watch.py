"""`gft watch`: follows a resource of a cluster until it has ended, with the view of `gft run`."""

from __future__ import annotations

import typer

from gemmatune_api.names import Phase
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.remote import Context, Look, Name, Namespace, remote
from gemmatune_cli.run import FAILED, INTERRUPTED, SUCCEEDED, ended
from gemmatune_cli.view import summary, view_for


def command(name: Name, namespace: Namespace = "", context: Context = "") -> None:
    """Follow a run of a cluster until its end, with its loss curve.

    Exit code 0: Succeeded, 1: Failed or deleted, 130: stopped watching.
    """
    found = remote(name, namespace, context)
    console = output()
    last: Look | None = None
    waits = False
    try:
        with view_for(console) as view:
            for last in found.looks():
                if ended(last.status) and not last.ended:
                    if not waits:
                        view.say(f"It had failed ({last.status.reason}); waits for the operator to take it up again")
                    waits = True
                    continue
                view.update(last.status)
                if last.ended:
                    break
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if last is not None:
        summary(console, last.status)
    if last is None or not last.ended:
        raise CommandError(f"{found} was deleted")
    raise typer.Exit(SUCCEEDED if last.status.phase == Phase.SUCCEEDED else FAILED)
