"""`gft validate`: every problem of every resource, with field path, value and remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gemmatune_cli.console import FAILED, CommandError, output, print_error

if TYPE_CHECKING:
    from rich.text import Text

    from gemmatune_api.errors import Problem
    from gemmatune_cli.documents import Document


def command(
    files: Annotated[list[str], typer.Argument(help="YAML or JSON files, folders of them, or - for standard input.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems only.")] = False,
) -> None:
    """Check resources as the API server and the operator do. Exit code 1: a resource is not valid."""
    from gemmatune_cli.documents import documents, none_found, sources

    console = output()
    resources = invalid = unread = 0
    for file in sources(files):
        try:
            for document in documents(file):
                resources += document.is_fine_tune
                is_valid, text = _checked(document)
                invalid += not is_valid
                if not (quiet and is_valid):
                    console.print(text)
        except CommandError as error:
            # One unreadable file does not hide the problems of the others.
            unread += 1
            print_error(error)
    if not (resources or unread):
        raise none_found(files)
    if invalid or unread:
        raise typer.Exit(FAILED)


def _checked(document: Document) -> tuple[bool, Text]:
    """Whether nothing is wrong with a document, and what to say of it."""
    from rich.text import Text

    from gemmatune_api.errors import InvalidResourceError
    from gemmatune_api.validate import parse

    place = f"{document.source}: {document.title}: "
    if not document.is_fine_tune:
        return True, Text.assemble(place, ("another kind, not looked at", "dim"))
    try:
        spec = parse(document.content).spec
    except InvalidResourceError as error:
        lines = [Text.assemble(place, (_count(len(error.problems)), "bold red")), *map(_problem, error.problems)]
        return False, Text("\n").join(lines)
    return True, Text.assemble(place, ("valid", "green"), f" ({spec.method} on {spec.accelerator.kind})")


def _count(problems: int) -> str:
    return "1 problem" if problems == 1 else f"{problems} problems"


def _problem(problem: Problem) -> Text:
    from rich.text import Text

    value = f" (found {problem.found})" if problem.found else ""
    remedy = f"\n    {problem.remedy}" if problem.remedy else ""
    return Text.assemble("  ", (problem.path, "bold"), f": {problem.message}{value}{remedy}")
