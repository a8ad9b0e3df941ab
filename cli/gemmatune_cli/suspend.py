"""`gft suspend`: the trainer saves a checkpoint and stops, and nothing is paid for any more."""

from __future__ import annotations

from gemmatune_api.names import Phase
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.remote import Context, Name, Namespace, look, remote


def command(name: Name, namespace: Namespace = "", context: Context = "") -> None:
    """Let a run save a checkpoint and stop; `gft resume` goes on from there."""
    found = remote(name, namespace, context)
    resource = found.get()
    now = look(resource)
    status = now.status
    if now.ended:
        raise CommandError(f"{found} has ended ({status.phase}): there is nothing to suspend")
    if resource["spec"].get("suspend"):
        output().print(f"{found} is told to stand still already; it is {status.phase or Phase.PENDING}.")
        return
    found.patch({"spec": {"suspend": True}})
    output().print(f"{found} saves a checkpoint and stops. `gft resume {name}` goes on from there.")
