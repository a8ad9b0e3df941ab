"""`gft`: one table of commands; each lives in a module of its own, which is imported when it is called."""

from __future__ import annotations

import errno
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gemmatune_cli.console import FAILED, CommandError, print_error

COMMANDS = {
    "validate": "Check resources as the API server and the operator do.",
    "plan": "Show memory, defaults and cost of a run before it starts, and whether it fits.",
    "render": "Print the Jobs and access objects that the operator would create.",
    "inspect": "Show the first rows as the model sees them: what is trained and what is masked.",
    "run": "Run a resource on this machine, without a cluster.",
    "top": "Show the runs of a cluster as a live table.",
    "watch": "Follow a run of a cluster until its end, with its loss curve.",
    "wait": "Wait for the end of a run; the exit code says which it was.",
    "logs": "Print what the pods of a run have written.",
    "suspend": "Let a run save a checkpoint and stop.",
    "resume": "Let a suspended run go on.",
    "retry": "Try a failed run again.",
    "doctor": "Find what keeps runs from working in a namespace, as you.",
    "samples": "Show the prompts of a run, answered before and after training.",
    "report": "Fetch the report of a finished run.",
    "compare": "Compare two finished runs: settings, losses, speed, memory, samples.",
    "serve-command": "Print a command that serves the result of a finished run.",
    "demo": "Tune the real Gemma 3 270M on quotes, on this machine.",
}
"""Commands in the order of the help; gemmatune_cli.NAME (- as _) holds the function `command` with its options."""


class Commands(TyperGroup):
    """Imports a command's module when it is called; the help of `gft` alone needs none of them."""

    _summaries_only = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self._summaries_only:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        single.command(cmd_name)(import_module(f"gemmatune_cli.{cmd_name.replace('-', '_')}").command)
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" There are {', '.join(COMMANDS)}."
            ctx.fail(f"No such command: {args[0]}.{hint}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._summaries_only = True
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            print_error(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # who read the output has seen enough: no problem to tell
            place = f"{error.filename}: " if error.filename else ""
            print_error(CommandError(f"{place}{error.strerror or error}"))
            raise typer.Exit(FAILED) from error


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gft {version('gemmatune')}")
        raise typer.Exit


@app.callback()
def gft(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune Gemma models: check, plan and run GemmaFineTune resources."""
