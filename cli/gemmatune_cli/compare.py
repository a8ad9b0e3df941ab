"""`gft compare`: two finished runs side by side: settings that differ, losses, speed, memory, samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gemmatune_cli import results
from gemmatune_cli.console import output

Manifest = dict[str, Any]
_GIB = 2**30


def command(
    a: results.Source, b: results.Source, namespace: results.Namespace = "", context: results.Context = ""
) -> None:
    """Compare two finished runs: the settings that differ, loss, evaluation, speed, memory and samples."""
    runs = [results.find(source, namespace, context) for source in (a, b)]
    one, other = (run.finished() for run in runs)
    console = output()
    titles = [run.title for run in runs]
    console.print(_table("Settings that differ", titles, list(differences(one, other)) or [("none", "", "")]))
    console.print(_table("Results", titles, list(figures(one, other))))
    for prompt, answers in samples(one, other):
        console.print(Text.assemble(("prompt  ", "dim"), (prompt, "bold")))
        console.print(_table("", titles, [(kind, *(text or "" for text in pair)) for kind, pair in answers]))


def differences(one: Manifest, other: Manifest) -> Iterator[tuple[str, str, str]]:
    """Settings and versions that are not the same, and what was trained."""
    ours, theirs = _settings(one), _settings(other)
    for name in dict.fromkeys([*ours, *theirs]):
        pair = ours.get(name, "-"), theirs.get(name, "-")
        if pair[0] != pair[1]:
            yield name, *pair


def _settings(manifest: Manifest) -> dict[str, str]:
    found = {str(name): str(value) for name, value in manifest.get("settings", {}).items() if name != "output.uri"}
    found["model revision"] = str(_source(manifest).get("revision", "-"))
    found["data hash"] = str(manifest.get("dataHash", "-"))
    return found | {f"version of {name}": str(value) for name, value in manifest.get("versions", {}).items()}


def _source(manifest: Manifest) -> dict[str, Any]:
    """What was tuned: its URI, revision and name."""
    model = manifest.get("model")
    older = model if isinstance(model, dict) else manifest.get("base", {})
    found: dict[str, Any] = manifest.get("source") or older
    return found


def figures(one: Manifest, other: Manifest) -> Iterator[tuple[str, str, str]]:
    """What came out, as text; `-` where a run does not know it."""
    rows: dict[str, Callable[[Manifest], Any]] = {
        "model": lambda found: _source(found).get("name"),
        "method": lambda found: found.get("method", {}).get("text"),
        "steps": lambda found: found.get("steps"),
        "attempts": lambda found: found.get("attempt"),
        "rows": lambda found: found.get("data", {}).get("rows"),
        "labelled tokens in a pass": lambda found: found.get("data", {}).get("labelledTokens"),
        "loss of the first point": lambda found: found.get("firstLoss"),
        "loss of the last point": lambda found: found.get("loss"),
        "evaluation loss of the base": lambda found: _evaluated(found, 0),
        "evaluation loss of the result": lambda found: _evaluated(found, found.get("step")),
        "result of step": lambda found: found.get("step"),
        "tokens a second (median)": lambda found: found.get("tokensPerSecond"),
        "highest memory, GiB": lambda found: found["memory"] / _GIB if found.get("memory") else None,
        "largest change of a logit": lambda found: (found.get("verified") or {}).get("delta"),
        "warnings": lambda found: " ".join(found.get("warnings", [])) or None,
    }
    for name, value in rows.items():
        yield name, _shown(value(one)), _shown(value(other))


def _evaluated(manifest: Manifest, step: object) -> object:
    found = [item["loss"] for item in manifest.get("evaluations", []) if item.get("step") == step]
    return found[-1] if found else None


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


Answers = list[tuple[str, tuple[str | None, str | None]]]


def samples(one: Manifest, other: Manifest) -> Iterator[tuple[str, Answers]]:
    """Each prompt with what the bases and the results of both runs answer; None where a run was not asked it."""
    ours, theirs = ({item["prompt"]: item for item in found.get("samples", [])} for found in (one, other))
    for prompt in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(prompt, {}), theirs.get(prompt, {})
        yield prompt, [(kind, (a.get(kind), b.get(kind))) for kind in ("before", "after")]


def _table(title: str, titles: list[str], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for name in ("", *titles):
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
