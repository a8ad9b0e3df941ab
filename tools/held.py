"""What holds the targets of the operator's benchmark that are not reached: a reason for each, beside its row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

_OPERATOR = (
    "Of the operator's own time for a new resource, a third is kopf's way of an event to its handler, and a fifth "
    "planning; the bare client does neither, and both share two cores with the API server."
)
_WRITES = (
    "A status write costs the API server 10 to 14 ms of processor time on this machine, a creation 4 ms; two cores, "
    "which it shares with etcd, the load and the watchers, have no time for more."
)
_PROGRESS = (
    "The API server is at its limit: in a shorter run, beside other work on the machine, a trainer's write cost it 32 "
    "to 37 ms of processor time, etcd 1 ms, the load 0.6 to 0.9 ms and the operator 1.0 to 1.4 ms. With 2, 8 or 100 "
    "writes at a time it did 36 to 46 a second, and no core was idle."
)
HELD = {
    "First Jobs": _OPERATOR,
    "Resource to Job": _OPERATOR,
    "Ends": f"{_WRITES} The ceiling below has the same limit.",
    "Progress writes,": _PROGRESS,
}
"""By the beginning of a target's name."""
NOT_ASKED = "Holds at the rate that was reached; the one that was asked was not."
UNKNOWN = "Not looked into yet."


def missed(found: Row) -> Iterator[Row]:
    """The targets that were missed or not shown, with what holds them."""
    for target in found["targets"]:
        if target["met"] is None:
            yield {"what": target["what"], "why": NOT_ASKED}
        elif not target["met"]:
            why = next((words for what, words in HELD.items() if target["what"].startswith(what)), UNKNOWN)
            yield {"what": target["what"], "why": why}
