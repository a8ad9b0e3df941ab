"""`gft watch`: follows a resource of a cluster until it has ended, with the view of `gft run`."""

from __future__ import annotations

import typer

from gemmatune_api.names import Phase
from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.remote import Context, Name, Namespace, remote
from gemmatune_cli.run import FAILED, INTERRUPTED, SUCCEEDED, ended
from gemmatune_cli.view import summary, view_for


def command(name: Name, namespace: Namespace = "", context: Context = "") -> None:
    """Follow a run of a cluster until its end, with its loss curve.

    Exit code 0: Succeeded, 1: Failed or deleted, 130: stopped watching.
    """
    found = remote(name, namespace, context)
    console = output()
    status = FineTuneStatus()
    try:
        with view_for(console) as view:
            for status in found.statuses():
                view.update(status)
                if ended(status):
                    break
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    summary(console, status)
    if not ended(status):
        raise CommandError(f"{found} was deleted")
    raise typer.Exit(SUCCEEDED if status.phase == Phase.SUCCEEDED else FAILED)
