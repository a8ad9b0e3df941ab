"""`gft top`: the runs of a namespace or of the whole cluster as a table that keeps itself up to date."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gemmatune_api import names
from gemmatune_api.base import duration_text
from gemmatune_api.names import Phase
from gemmatune_api.status import FineTuneStatus, Progress
from gemmatune_cli.console import CommandError, harmless, output
from gemmatune_cli.refusals import answers
from gemmatune_cli.remote import Connection, Context, connect
from gemmatune_cli.view import PHASE_STYLES
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.observe import status_of

WIDE = 1000
PAGE = 500
"""Resources of one request."""
_ENDED = (Phase.SUCCEEDED, Phase.FAILED)
_ORDER: dict[str, int] = {phase.value: place for place, phase in enumerate(Phase, start=1)}
_HEADINGS = ("NAME", "PHASE", "STEP", "LOSS", "TOKENS/S", "ETA", "RETRIES", "COST", "WAITS", "AGE", "WHY")
_RIGHT = frozenset({"STEP", "LOSS", "TOKENS/S", "ETA", "RETRIES", "COST", "WAITS", "AGE"})


def command(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Namespace. Default: that of the kubeconfig's context.")
    ] = "",
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="The whole cluster.")] = False,
    context: Context = "",
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.", min=0.5)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the table once, as where no terminal looks on.")] = False,
) -> None:
    """Show runs with their progress, cost and waiting time, those that train first; Ctrl-C ends it."""
    cluster = connect(context)
    chosen = "" if everywhere else namespace or cluster.namespace
    console = output()
    if not console.is_terminal:
        console.width = WIDE  # whoever reads a pipe cuts it as needed
    if once or not console.is_terminal:
        console.print(table(listed(cluster, chosen), datetime.now(UTC), everywhere=everywhere))
        return
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_look(cluster, chosen, everywhere), refresh=True)
                time.sleep(every)
    except KeyboardInterrupt:
        return


def _look(cluster: Connection, namespace: str, everywhere: bool) -> Table:
    """The table now; an API server that is away for a moment is told in it."""
    now = datetime.now(UTC)
    try:
        return table(listed(cluster, namespace), now, everywhere=everywhere)
    except CommandError as error:
        found = Table(box=None, title=now.strftime("%H:%M:%S"))
        found.add_row(Text(error.message, "red"))
        return found


def listed(cluster: Connection, namespace: str) -> list[dict[str, Any]]:
    """The resources of a namespace, "" for all. Raises CommandError."""
    where = (names.GROUP, names.VERSION)
    about = f"{names.KIND}s of {f'namespace {namespace}' if namespace else 'all namespaces'}"
    found: list[dict[str, Any]] = []
    rest = ""
    with answers(about):
        while True:
            page = (
                cluster.api.list_namespaced_custom_object(*where, namespace, names.PLURAL, limit=PAGE, _continue=rest)
                if namespace
                else cluster.api.list_cluster_custom_object(*where, names.PLURAL, limit=PAGE, _continue=rest)
            )
            found += harmless(page["items"])
            rest = page["metadata"].get("continue") or ""
            if not rest:
                return found


def table(resources: Iterable[dict[str, Any]], now: datetime, *, everywhere: bool) -> Table:
    """The resources as a table: those that train, those under way, those that have ended, each by age."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    if everywhere:
        found.add_column("NAMESPACE", no_wrap=True)
    for heading in _HEADINGS:
        found.add_column(heading, justify="right" if heading in _RIGHT else "left", no_wrap=True)
    looked_at = [(item, status_of(item.get("status"))) for item in resources]
    for item, status in sorted(looked_at, key=lambda pair: _place(*pair)):
        meta = item["metadata"]
        first = [Text(meta["namespace"])] if everywhere else []
        found.add_row(*first, Text(meta["name"]), *_cells(item, status, now))
    return found


def _place(item: dict[str, Any], status: FineTuneStatus) -> tuple[int, str, str, str]:
    meta = item["metadata"]
    phase = status.phase or Phase.PENDING
    place = 0 if phase == Phase.TRAINING else _ORDER.get(phase, 0)
    return place, meta["creationTimestamp"], meta["namespace"], meta["name"]


def _cells(item: dict[str, Any], status: FineTuneStatus, now: datetime) -> list[Text]:
    progress = status.progress or Progress()
    phase = status.phase or Phase.PENDING.value
    trains = phase == Phase.TRAINING
    speed, loss = progress.tokens_per_second, progress.loss
    cost = status.cost.so_far if status.cost else None
    since = status.timers.pending_since if status.timers and phase not in _ENDED and not trains else None
    return [
        Text(phase, PHASE_STYLES.get(phase, "")),
        Text(progress.step_text),
        Text(f"{loss:.4f}" if loss is not None else ""),
        Text(f"{speed:,.0f}" if trains and speed is not None else ""),
        Text(progress.eta if trains else ""),
        Text(status.summary.retries if status.summary else ""),
        Text(f"{cost:.2f}" if cost is not None else ""),
        Text(_ago(since, now)),
        Text(_ago(item["metadata"]["creationTimestamp"], now)),
        Text("" if trains or phase == Phase.SUCCEEDED else status.reason),
    ]


def _ago(time_: str | None, now: datetime) -> str:
    then = parse_time(time_)
    return duration_text((now - then).total_seconds()) if then is not None else ""
