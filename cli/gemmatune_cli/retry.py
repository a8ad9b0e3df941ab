"""`gft retry`: a failed run gets new budgets and goes on from its newest checkpoint."""

from __future__ import annotations

from datetime import UTC, datetime

from gemmatune_api.names import ANNOTATION_RETRY, Phase
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.remote import Context, Name, Namespace, remote
from gemmatune_operator.observe import status_of


def command(name: Name, namespace: Namespace = "", context: Context = "") -> None:
    """Try a failed run again: with new budgets, from its newest checkpoint."""
    found = remote(name, namespace, context)
    status = status_of(found.get().get("status"))
    if status.phase != Phase.FAILED:
        raise CommandError(
            f"{found} is {status.phase or Phase.PENDING}: only a run that has failed is tried again",
            f"`gft watch {name}` follows it.",
        )
    # To the microsecond: two retries within a second are two.
    found.patch({"metadata": {"annotations": {ANNOTATION_RETRY: datetime.now(UTC).isoformat()}}})
    output().print(f"{found} is tried again. It had failed with {status.reason}: {status.message}")
    if status.remedy:
        output().print(f"Where nothing has changed since, it will again. {status.remedy}")
