"""`gft resume`: a suspended run goes on from its newest checkpoint."""

from __future__ import annotations

from gemmatune_api.names import Phase
from gemmatune_cli.console import output
from gemmatune_cli.remote import Context, Name, Namespace, remote
from gemmatune_operator.observe import status_of


def command(name: Name, namespace: Namespace = "", context: Context = "") -> None:
    """Let a suspended run go on from its newest checkpoint."""
    found = remote(name, namespace, context)
    resource = found.get()
    if not resource["spec"].get("suspend"):
        phase = status_of(resource.get("status")).phase or Phase.PENDING
        more = f" A failed run is tried again by `gft retry {name}`." if phase == Phase.FAILED else ""
        output().print(f"{found} is not suspended; it is {phase}.{more}")
        return
    found.patch({"spec": {"suspend": False}})
    output().print(f"{found} goes on. `gft watch {name}` follows it.")
