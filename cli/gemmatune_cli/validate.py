"""`gft validate`: every problem of every resource, with field path, value and remedy."""

from __future__ import annotations

from typing import Annotated

import typer

from gemmatune_cli.console import FAILED, output


def command(
    files: Annotated[list[str], typer.Argument(help="YAML or JSON files, folders of them, or - for standard input.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems only.")] = False,
) -> None:
    """Check resources as the API server and the operator do. Exit code 1: a resource is not valid."""
    from rich.text import Text

    from gemmatune_api.errors import InvalidResourceError
    from gemmatune_api.validate import parse
    from gemmatune_cli.documents import read

    console = output()
    invalid = 0
    documents = read(files)
    for document in documents:
        place = f"{document.source}: {document.title}: "
        if not document.is_fine_tune:
            if not quiet:
                console.print(Text.assemble(place, ("another kind, not looked at", "dim")))
            continue
        try:
            resource = parse(document.content)
        except InvalidResourceError as error:
            invalid += 1
            console.print(Text.assemble(place, (_count(len(error.problems)), "bold red")))
            for problem in error.problems:
                console.print(_problem_text(problem.path, problem.message, problem.found, problem.remedy))
            continue
        if not quiet:
            spec = resource.spec
            console.print(Text.assemble(place, ("valid", "green"), f" ({spec.method} on {spec.accelerator.kind})"))
    if not any(document.is_fine_tune for document in documents):
        from gemmatune_cli.documents import none_found

        raise none_found(files)
    if invalid:
        raise typer.Exit(FAILED)


def _count(problems: int) -> str:
    return "1 problem" if problems == 1 else f"{problems} problems"


def _problem_text(path: str, message: str, found: str, remedy: str) -> object:
    from rich.text import Text

    value = f" (found {found})" if found else ""
    return Text.assemble("  ", (path, "bold"), f": {message}{value}\n", ("    " + remedy) if remedy else "")
