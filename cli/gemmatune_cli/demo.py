"""`gft demo`: the real Gemma 3 270M learns the form of quotes on this machine, from nothing in a few minutes."""

from __future__ import annotations

import importlib.resources
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.syntax import Syntax

from gemmatune_api import validate, yamlio
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.local.folders import data_dir
from gemmatune_cli.local.model import ModelError, gemma_3_270m
from gemmatune_cli.run import check_machine, run

QUOTES_PACKAGE = "inspirational_quotes"
RESOURCE = """\
# Written by `gft demo`. `gft run {file}` runs it again, once output.uri names another folder;
# on a cluster, use URIs that it can reach (hf://, gs://) and the accelerator that you have.
apiVersion: gemmatune.dev/v1alpha1
kind: GemmaFineTune
metadata:
  name: quotes
spec:
  model:
    uri: {model}
  dataset:
    uri: {data}
    text:
      template: "Quote: {{text}}\\nAuthor: {{from}}"
    maxLength: 256
  lora:
    rank: 8
  training:
    maxSteps: {steps}
    globalBatchSize: 8
    learningRate: 5e-4    # the default, 2e-4, suits longer runs
  samples:
    prompts: ["Quote: Imagination is"]
    maxNewTokens: 40
  output:
    uri: {output}
  accelerator:
    cpu: {{}}
"""
STEPS = 40


@dataclass
class Stopwatch:
    """Seconds of the parts of the demo."""

    parts: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures a part."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.parts.append((name, time.monotonic() - start))

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.parts)


def command(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder to make for data and results. Default: named by the time.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of 8 quotes.")] = STEPS,
) -> None:
    """Tune the real Gemma 3 270M on quotes, on this machine; no model hub is needed."""
    console = output()
    watch = Stopwatch()
    folder = (folder or data_dir() / "demo" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise CommandError(f"--folder: {folder} exists", "Name a folder that does not exist yet.") from None
    with watch.part("model"):
        try:
            model = gemma_3_270m(console.print)
        except ModelError as error:
            raise CommandError(str(error)) from error
    with watch.part("data"):
        rows = write_quotes(folder / "quotes.jsonl")
    file = folder / "quotes.yaml"
    text = resource_text(file, model, folder, steps)
    file.write_text(text)
    console.print(f"{rows} quotes are in {folder / 'quotes.jsonl'}; the resource is {file}:\n")
    console.print(Syntax(text, "yaml", background_color="default"))
    with watch.part("run"):
        code = train(file, console)
    console.print(f"\nfolder   {folder}\nseconds  {watch}")
    raise typer.Exit(code)


def train(file: Path, console: Console) -> int:
    """Runs the resource in the file; the exit code."""
    resource = validate.parse(yamlio.load_all(file.read_text())[0])
    check_machine(resource)
    return run(resource, f"gft run {file}", console)


def resource_text(file: Path, model: Path, folder: Path, steps: int) -> str:
    """The resource of the demo, as a person would write it."""
    return RESOURCE.format(
        file=file,
        model=model.as_uri(),
        data=(folder / "quotes.jsonl").as_uri(),
        output=(folder / "output").as_uri(),
        steps=steps,
    )


def write_quotes(target: Path) -> int:
    """Writes the quotes of the PyPI package as JSON lines with `text` and `from`; their number.

    Raises:
        CommandError: the package is not installed.
    """
    try:
        source = importlib.resources.files(QUOTES_PACKAGE) / "quotes.json"
    except ModuleNotFoundError:
        raise CommandError(
            "the PyPI package inspirational-quotes is not installed",
            "`uv sync --group demo --extra torch` installs it.",
        ) from None
    quotes: list[dict[str, Any]] = json.loads(source.read_text(encoding="utf-8"))
    lines = [json.dumps({"text": quote["text"], "from": quote["from"]}, ensure_ascii=False) for quote in quotes]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)
