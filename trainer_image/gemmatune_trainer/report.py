"""report.html: what was trained on what, how the loss went, and what changed; one file that opens offline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from gemmatune_trainer.charts import WIDE, Series, chart, number
from gemmatune_trainer.history import thin
from gemmatune_trainer.pages import environment

if TYPE_CHECKING:
    from gemmatune_api.runconfig import RunConfig
    from gemmatune_trainer.result import Result

_CHART_POINTS = 400
_GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """A chart with its caption; `legend` names its lines, where there are several."""

    title: str
    unit: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    wide: bool = False


def render(result: Result) -> str:
    """The page; every text of the data, the prompts and the model is escaped."""
    page = environment().get_template("report.html.j2")
    return page.render(
        result=result,
        figures=[figure for figure in figures(result) if figure.svg],
        samples=list(zip(result.prompts, result.before, result.after, strict=False)),
        facts=facts(result),
        settings=settings(result.config),
        data=data(result),
        attempts=attempts(result),
        placed=placed(result),
    )


def figures(result: Result) -> list[Figure]:
    """The curves of a run; an upright line stands where an attempt went on."""
    points = thin(result.history.points, _CHART_POINTS)
    evaluations = thin(result.history.evaluations, _CHART_POINTS)
    steps = [float(point.step) for point in points]
    resumed = [float(begun.step) for begun in result.history.attempts if begun.step]
    losses = [Series("training", steps, [point.loss for point in points])]
    if evaluations:
        at = [float(item.step) for item in evaluations]
        losses.append(Series("evaluation", at, [item.loss for item in evaluations], "second"))
    legend = tuple((item.name, item.style) for item in losses) if len(losses) > 1 else ()
    title = "Loss of training and evaluation" if evaluations else "Loss"
    found = [Figure(title, "nats per labelled token", chart(losses, "loss by step", resumed, WIDE), legend, wide=True)]
    known = [point for point in points if point.memory]
    held = [point.memory / _GIB for point in known]
    kind = "memory of the process" if result.config.device == "cpu" else "highest memory of the device"
    for name, unit, series in (
        ("Learning rate", "", Series("", steps, [point.learning_rate for point in points])),
        ("Speed", "tokens a second", Series("", steps, [point.tokens_per_second for point in points])),
        ("Gradient norm", "before clipping", Series("", steps, [point.gradient_norm for point in points])),
        ("Memory", f"GiB, {kind}", Series("", [float(point.step) for point in known], held)),
    ):
        found.append(Figure(name, unit, chart([series], f"{name.lower()} by step", resumed)))
    return found


def facts(result: Result) -> list[tuple[str, str]]:
    """The run in a few numbers."""
    points = result.history.points
    found = [("Model", result.files.model.label), ("Method", method_text(result)), ("Steps", f"{result.total_steps:,}")]
    if points:
        found.append(("Loss", f"{number(points[0].loss)} → {number(points[-1].loss)}"))
    if result.history.evaluations:
        first, chosen = result.history.evaluations[0], result.evaluated or result.history.evaluations[-1]
        found.append(("Evaluation loss", f"{number(first.loss)} → {number(chosen.loss)} at step {chosen.step}"))
        found.append(("Perplexity", f"{_perplexity(first.loss)} → {_perplexity(chosen.loss)}"))
    if result.verification:
        found.append(("Trained weights", f"{result.verification.parameters:,}"))
        if result.verification.exported:
            found.append(("Weights in the adapter's file", f"{result.verification.exported:,}"))
    if points:
        found.append(("Median speed", f"{number(result.history.median_speed or 0)} tokens/s"))
    if most := result.history.highest_memory:
        found.append(("Highest memory", f"{number(most / _GIB)} GiB"))
    if tally := result.tally:
        late = f"{tally.late} after step 2" if tally.late else "none after step 2"
        found.append(("Compilations of the last attempt", f"{tally.compilations} in {tally.seconds:.1f} s, {late}"))
        found.append(("Padding", f"{tally.padding:.1%} of the computed tokens"))
    return found


def _perplexity(loss: float) -> str:
    return number(math.exp(loss)) if loss < 100 else "> e^100"


def method_text(result: Result) -> str:
    """`QLoRA (nf4), rank 8, alpha 16`."""
    method = result.config.method
    if method.kind == "full":
        return "full tuning"
    name = "DoRA" if method.dora else "LoRA"
    kind = f"Q{name} ({method.quant_type or '8-bit'})" if method.kind == "qlora" else name
    return f"{kind}, rank {method.rank}, alpha {method.alpha}"


def data(result: Result) -> list[tuple[str, str]]:
    """What was trained on."""
    statistics = result.data
    names = {
        "rows": "Rows",
        "tokens": "Tokens in a pass",
        "labelled_tokens": "of these trained",
        "longest": "Longest row, before cutting",
        "truncated_rows": "Rows cut at maxLength",
        "cut_tokens": "Tokens cut off",
        "dropped_rows": "Rows dropped as too long",
        "duplicates": "Rows that repeat another",
    }
    shares = {"labelled_tokens": statistics.tokens, "truncated_rows": statistics.rows, "duplicates": statistics.rows}
    return [
        ("Source", result.config.dataset.uri),
        *((text, _counted(getattr(statistics, name), shares.get(name, 0))) for name, text in names.items()),
        *(
            (text, f"{value:,}")
            for name, text in _EVALUATED.items()
            if (value := getattr(statistics, name)) is not None
        ),
    ]


_EVALUATED = {
    "eval_rows": "Rows kept for evaluation",
    "eval_truncated_rows": "Of these cut at maxLength",
    "eval_cut_tokens": "Tokens cut off these",
    "eval_dropped_rows": "Rows for evaluation dropped as too long",
}


def _counted(value: int, whole: int) -> str:
    return f"{value:,} ({value / whole:.1%})" if value and whole else f"{value:,}"


def attempts(result: Result) -> list[tuple[str, str, str, str, str]]:
    """The attempts as rows of a table: number, beginning, device, from and to which step.

    In the order in which they went on from each other: numbers begin anew where a resource was deleted and created
    again. An attempt whose steps no later one went on from has left no trace but its number.
    """
    begun = result.history.attempts
    ends = [item.step for item in begun[1:]] + [result.total_steps]
    rows, last = [], 0
    for item, end in zip(begun, ends, strict=True):
        if item.attempt <= last:
            last = 0  # another resource's
        rows += [(str(number), "", "", "", "left no checkpoint") for number in range(last + 1, item.attempt)]
        rows.append((str(item.attempt), item.time, item.device, f"{item.step:,}", f"{end:,}"))
        last = item.attempt
    return rows


def placed(result: Result) -> list[tuple[str, str, str, str, str]]:
    """Where weights and optimizer variables lay, as rows of a table: name, shape, axes, bytes, bytes of a device."""
    items = result.verification.placed if result.verification else ()
    rows = [
        (
            f"{item.name} ({item.count} times)" if item.count > 1 else item.name,
            " x ".join(map(str, item.shape)) or "a number",
            item.divided,
            f"{item.bytes:,}",
            f"{item.device_bytes:,}",
        )
        for item in items
    ]
    total, held = sum(item.bytes for item in items), sum(item.device_bytes for item in items)
    return [*rows, ("together", "", "", f"{total:,}", f"{held:,}")] if rows else []


def settings(config: RunConfig) -> list[tuple[str, str]]:
    """The settings of a run as rows of a table, by their names in the resource."""
    blocks: dict[str, Any] = {
        "model": config.model,
        "dataset": config.dataset,
        config.method.kind: config.method,
        "training": config.training,
        "checkpoint": config.checkpoint,
        "samples": config.samples,
        "tracking": config.tracking,
        "output": config.output,
    }
    rows: list[tuple[str, str]] = [("device", config.device)]
    for name, block in blocks.items():
        if block is not None:
            rows += _leaves(name, block.model_dump(by_alias=True, exclude_none=True))
    return rows


def _leaves(path: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(f"{path}.{key}", item)]
    return [(path, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]
