"""`gft report`: fetches the report of a finished run, a page that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from gemmatune_cli import bucket, results
from gemmatune_cli.console import CommandError

_NAME = "report.html"


def command(
    source: results.Source,
    namespace: results.Namespace = "",
    context: results.Context = "",
    target: Annotated[
        str, typer.Option("--output", "-o", help="File to write; - for standard output. Default: NAME-report.html.")
    ] = "",
) -> None:
    """Fetch the report of a finished run; prints the path of the page, which opens in any browser.

    A report that lies on this machine already is not copied without --output.
    """
    run = results.find(source, namespace, context)
    run.finished()
    uri = run.at(results.REPORT)
    content = bucket.read(uri)
    if content is None:
        raise CommandError(f"{uri} does not exist", f"Look into {run.output}: somebody has removed it.")
    if not target and uri.startswith("file://"):
        print(unquote(urlsplit(uri).path))
    elif target == "-":
        typer.echo(content.decode("utf-8"))
    else:
        path = Path(target or f"{run.name('Say with --output where to write the report.')}-{_NAME}")
        if path.is_dir():
            path /= _NAME
        path.write_bytes(content)
        print(path)
