"""What the operator asked of the API server, by the API server's own audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.api import Object


def policy(group: str) -> Object:
    """An audit policy that records the requests of one group of users, and nothing else."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        # A watch is recorded when it begins; it may outlive the test.
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "userGroups": [group]}, {"level": "None"}],
    }


# What the API server says to whom RBAC gives no right: to ask, to pass on what they do not hold, to block a deletion.
# A quota, a Pod Security level and a namespace that is being deleted refuse with 403 too, in other words.
_NO_RIGHT = (" cannot ", "attempting to grant RBAC permissions not currently held", "can't set finalizers on")


@dataclass(frozen=True, slots=True)
class Request:
    """One answered request for an object of the API."""

    user: str
    verb: str
    group: str
    resource: str
    """With the subresource, as a Role writes it: gemmafinetunes/status."""
    namespace: str
    name: str
    code: int
    message: str
    position: int
    """Where in the log it stands, in bytes."""

    @property
    def right(self) -> tuple[str, str, str]:
        """What a Role must grant for it: (group, resource, verb)."""
        return self.group, self.resource, self.verb

    @property
    def lacked_rights(self) -> bool:
        """Whether it was refused for want of rights."""
        return self.code == 403 and any(words in self.message for words in _NO_RIGHT)


def requests(log: Path, position: int = 0) -> Iterator[Request]:
    """The requests in a log from a byte on, oldest first; a watch counts when it begins and when it ends."""
    if not log.exists():
        return
    with log.open("rb") as file:
        file.seek(position)
        lines = file.read().splitlines(keepends=True)
    for line in lines:
        begin, position = position, position + len(line)
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the API server was killed in the middle of it
        target = event.get("objectRef")
        if target is None:
            continue  # discovery and probes
        status = event.get("responseStatus") or {}
        parts = (target.get("resource", ""), target.get("subresource", ""))
        yield Request(
            user=event["user"]["username"],
            verb=event["verb"],
            group=target.get("apiGroup", ""),
            resource="/".join(part for part in parts if part),
            namespace=target.get("namespace", ""),
            name=target.get("name", ""),
            code=int(status.get("code", 0)),
            message=status.get("message", ""),
            position=begin,
        )
