"""docs/troubleshooting.md: every reason that a status can give, with where it shows and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from gemmatune_api.names import EXIT_REASONS, REASONS, ExitCode, Reason
from tools import operations

HEADER = "<!-- Generated from names.py by `make generate`; do not edit. -->"
INTRODUCTION = """
# Troubleshooting

The status of a run has a reason, a message and a remedy: `kubectl describe gft NAME`. The remedy \
there is more exact than the one here, since it names only what may still change. `gft doctor FILE -n NAMESPACE` looks \
for what keeps a run from starting; `gft logs NAME -n NAMESPACE` shows what its pods wrote.

Nothing happens at all, and the status is empty? Then no operator looks at the resource: `kubectl get deployments \
-A -l app.kubernetes.io/name=gemmatune`, and the namespaces that it watches.
"""
GROUPS = (
    ("What ended an attempt", operations.CAUSES),
    ("What it waits for", operations.WAITS),
    ("What was refused", operations.REFUSALS),
)


def document() -> str:
    """The page."""
    return "\n".join([HEADER, INTRODUCTION, *_sections()]).rstrip() + "\n"


def _sections() -> Iterator[str]:
    codes = {reason: code for code, reason in EXIT_REASONS.items() if code is not ExitCode.CRASHED}
    for title, reasons in GROUPS:
        yield f"## {title}\n"
        for reason in sorted(reasons, key=str):
            yield from _section(reason, codes.get(reason))


def _section(reason: Reason, code: int | None) -> Iterator[str]:
    text = REASONS[reason]
    yield f"### {reason.value}\n"
    exits = f" The trainer ended with exit code {int(code)}." if code is not None else ""
    yield f"{text.meaning}{exits}\n"
    if text.remedy:
        yield f"**Do:** {text.remedy}\n"
    places = ", ".join(f"`{place}`" for place in operations.shown(reason))
    if places:
        yield f"Shows as {places}.\n"
