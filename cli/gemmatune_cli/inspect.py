"""`gft inspect`: the first rows as the model sees them, trained tokens and masked ones in different colours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmatune_cli.console import CommandError, output

if TYPE_CHECKING:
    from rich.text import Text

    from gemmatune_api.runconfig import RunConfig

TRAINED, MASKED = "bold green", "dim"
_LOG_LINES = 15


def command(
    file: Annotated[str, typer.Argument(help="YAML or JSON file with one GemmaFineTune, or - for standard input.")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Rows to show.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a row: text, tokens, labels, length, cut, dropped.")
    ] = False,
) -> None:
    """Show the first rows as the model sees them: what is trained and what is masked.

    Reads tokenizer and data where the resource says, by this machine's credentials (HF_TOKEN for hf://); nothing is
    written to the output.
    """
    from rich.text import Text

    console = output()
    lines = _trainer_lines(_config(file), rows)
    if not as_json:
        console.print(Text.assemble("Tokens are ", ("trained", TRAINED), " or ", ("masked", MASKED), "."))
    for line in lines:
        if as_json:
            typer.echo(line)
        else:
            console.print(_shown(json.loads(line)))


def _config(file: str) -> RunConfig:
    from gemmatune_api import defaults, runconfig
    from gemmatune_cli.documents import fine_tunes

    resources = fine_tunes([file])
    if len(resources) > 1:
        found = ", ".join(resource.metadata.name for resource in resources)
        raise CommandError(f"{file} holds several resources: {found}", "Put the one to look at into a file of its own.")
    metadata, spec = resources[0].metadata, defaults.resolve(resources[0].spec)
    identity = runconfig.RunIdentity(name=metadata.name, namespace=metadata.namespace, uid=metadata.uid)
    return runconfig.build(spec, identity, 1, None)


def _trainer_lines(config: RunConfig, rows: int) -> list[str]:
    """What `python -m gemmatune_trainer inspect` prints, a line a row; the trainer's libraries stay in its process."""
    from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_TERMINATION_LOG
    from gemmatune_cli.local.folders import cache_dir

    if importlib.util.find_spec("transformers") is None:
        raise CommandError(
            "gft inspect needs the trainer's libraries, which are not installed here",
            "Run it as: uv run --extra torch gft inspect FILE",
        )
    with tempfile.TemporaryDirectory(prefix="gft-inspect-") as folder:
        message = Path(folder, "message")
        environment = {
            **os.environ,
            ENV_RUN: config.to_env(),
            ENV_CACHE: str(cache_dir() / "inspect"),
            ENV_TERMINATION_LOG: str(message),
        }
        command = [sys.executable, "-m", "gemmatune_trainer", "inspect", "-n", str(rows)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise _failure(message, done)
    # Not splitlines(): a row may hold other line separators of Unicode.
    return [line for line in done.stdout.split("\n") if line]


def _failure(message: Path, done: subprocess.CompletedProcess[str]) -> CommandError:
    from gemmatune_api.messages import TerminationMessage, from_text

    left = from_text(message.read_text(encoding="utf-8"), TerminationMessage) if message.exists() else None
    if left is not None and left.message:
        return CommandError(left.message, left.remedy)
    tail = "\n".join(done.stderr.splitlines()[-_LOG_LINES:])
    return CommandError(f"the trainer ended with exit code {done.returncode}:\n{tail}")


def _shown(row: dict[str, Any]) -> Text:
    """A row: a line of numbers, then its tokens in their colours."""
    from rich.text import Text

    trained = sum(row["labels"])
    numbers = [f"{row['length']} tokens", f"{trained} trained"]
    if row["cut"]:
        numbers.append(f"{row['cut']} cut at maxLength")
    if row["dropped"]:
        numbers.append("dropped")
    text = Text.assemble("\n", (f"{row['row']}", "bold"), f": {', '.join(numbers)}\n")
    for token, is_trained in zip(row["tokens"], row["labels"], strict=True):
        text.append(token, style=TRAINED if is_trained else MASKED)
    return text
