"""The model card (README.md) that lies beside the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmatune_trainer.charts import number
from gemmatune_trainer.pages import environment
from gemmatune_trainer.report import method_text, settings

if TYPE_CHECKING:
    from gemmatune_trainer.result import Result


def render(result: Result) -> str:
    """The card as Markdown with Hugging Face's metadata block."""
    points = result.history.points
    return (
        environment()
        .get_template("card.md.j2")
        .render(
            result=result,
            method=method_text(result),
            settings=settings(result.config),
            evaluated=(number(result.history.evaluations[0].loss), number(result.evaluated.loss))
            if result.evaluated
            else None,
            losses=(number(points[0].loss), number(points[-1].loss)) if points else None,
            chat=result.files.model.rules.chat and result.config.dataset.text is None,
            images=result.files.model.rules.images,
            samples=list(zip(result.prompts, result.before, result.after, strict=False)),
        )
    )
