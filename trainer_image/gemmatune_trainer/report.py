"""report.html: what was trained on what, how the loss went, and what changed; one file that opens offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmatune_trainer.charts import line_chart, number
from gemmatune_trainer.history import thin
from gemmatune_trainer.pages import environment

if TYPE_CHECKING:
    from gemmatune_api.runconfig import RunConfig
    from gemmatune_trainer.result import Result

_CHART_POINTS = 400


def render(result: Result) -> str:
    """The page; every text of the data, the prompts and the model is escaped."""
    points = thin(result.history.points, _CHART_POINTS)
    steps = [float(point.step) for point in points]
    charts = [
        ("Loss", "nats per labelled token", line_chart(steps, [point.loss for point in points], "loss by step")),
        (
            "Learning rate",
            "",
            line_chart(steps, [point.learning_rate for point in points], "learning rate by step"),
        ),
        (
            "Speed",
            "tokens a second",
            line_chart(steps, [point.tokens_per_second for point in points], "tokens a second by step"),
        ),
    ]
    evaluations = thin(result.history.evaluations, _CHART_POINTS)
    if evaluations:
        chart = line_chart(
            [float(item.step) for item in evaluations],
            [item.loss for item in evaluations],
            "evaluation loss by step",
        )
        charts.insert(1, ("Evaluation loss", "nats per labelled token of the rows kept for it", chart))
    page = environment().get_template("report.html.j2")
    return page.render(
        result=result,
        charts=charts,
        samples=list(zip(result.prompts, result.before, result.after, strict=False)),
        facts=_facts(result),
        settings=settings(result.config),
        data=_data(result),
    )


def _facts(result: Result) -> list[tuple[str, str]]:
    points = result.history.points
    facts = [("Model", result.files.model.label), ("Method", method_text(result)), ("Steps", str(result.total_steps))]
    if points:
        facts.append(("Loss", f"{number(points[0].loss)} → {number(points[-1].loss)}"))
    if result.history.evaluations:
        first, chosen = result.history.evaluations[0], result.evaluated or result.history.evaluations[-1]
        facts.append(("Evaluation loss", f"{number(first.loss)} → {number(chosen.loss)} at step {chosen.step}"))
    if result.verification:
        facts.append(("Trained weights", f"{result.verification.parameters:,}"))
    return facts


def method_text(result: Result) -> str:
    """`QLoRA (nf4), rank 8, alpha 16`."""
    method = result.config.method
    if method.kind == "full":
        return "full tuning"
    name = "DoRA" if method.dora else "LoRA"
    kind = f"Q{name} ({method.quant_type or '8-bit'})" if method.kind == "qlora" else name
    return f"{kind}, rank {method.rank}, alpha {method.alpha}"


def _data(result: Result) -> list[tuple[str, str]]:
    data = result.data
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
    return [
        ("Source", result.config.dataset.uri),
        *((text, f"{getattr(data, name):,}") for name, text in names.items()),
        *((("Rows kept for evaluation", f"{data.eval_rows:,}"),) if data.eval_rows else ()),
    ]


def settings(config: RunConfig) -> list[tuple[str, str]]:
    """The settings of a run as rows of a table, by their names in the resource."""
    blocks: dict[str, Any] = {
        "model": config.model,
        "dataset": config.dataset,
        config.method.kind: config.method,
        "training": config.training,
        "checkpoint": config.checkpoint,
        "output": config.output,
    }
    rows: list[tuple[str, str]] = [("device", config.device)]
    for name, block in blocks.items():
        rows += _leaves(name, block.model_dump(by_alias=True, exclude_none=True))
    return rows


def _leaves(path: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(f"{path}.{key}", item)]
    return [(path, ", ".join(map(str, value)) if isinstance(value, list) else str(value))]
