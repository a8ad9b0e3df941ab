"""`gft samples`: the prompts of a run, answered before and after training."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gemmatune_cli import results
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.view import print_samples


def command(
    source: results.Source,
    namespace: results.Namespace = "",
    context: results.Context = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """Show the prompts of a run with the answers of the base and of the result.

    Of a run that still trains, the answers of the base alone.
    """
    run = results.find(source, namespace, context)
    found = run.samples()
    if not found:
        raise CommandError(
            f"{run.title} has no samples", "Set samples.prompts or samples.fromEval; they are made when a run begins."
        )
    if as_json:
        print(json.dumps([item.model_dump(exclude_none=True) for item in found], ensure_ascii=False, indent=2))
    else:
        print_samples(output(), found)
