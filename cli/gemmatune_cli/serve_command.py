"""`gft serve-command`: prints the command that serves what a run left."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gemmatune_api import serving
from gemmatune_cli import results
from gemmatune_cli.console import CommandError


class How(StrEnum):
    """Servers."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"
    MERGED = "merged"


def command(
    source: results.Source,
    namespace: results.Namespace = "",
    context: results.Context = "",
    how: Annotated[
        How,
        typer.Option(
            "--with",
            help="vllm: the base with the adapter (as status.artifacts.serveCommand); transformers: one answer in "
            "Python; merged: vLLM on the merged weights.",
        ),
    ] = How.VLLM,
) -> None:
    """Print a command that serves the result of a finished run."""
    run = results.find(source, namespace, context)
    served = run.served()
    text = {How.VLLM: serving.vllm, How.TRANSFORMERS: serving.transformers, How.MERGED: serving.merged}[how](served)
    if text is None:
        raise CommandError(f"{run.title} has no merged weights", "Set output.merge: true in a new resource.")
    print(text)
