"""Where gft writes: results to standard output, problems to standard error, errors without tracebacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 1
"""Exit code of a command that found a problem (2 is a wrong command line)."""


class CommandError(Exception):
    """Ends a command: what was found, what to do, and the exit code."""

    def __init__(self, message: str, remedy: str = "", exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code


_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""Control characters of a terminal by what stands for them: a model's answer may hold any, and a status as well."""


def harmless(value: Any) -> Any:
    """JSON of a cluster or a bucket whose texts cannot steer the terminal that shows them."""
    match value:
        case str():
            return value.translate(_CONTROLS)
        case list():
            return [harmless(item) for item in value]
        case dict():
            return {harmless(name): harmless(item) for name, item in value.items()}
    return value


def output() -> Console:
    """The console of results."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def problems() -> Console:
    """The console of problems."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_error(error: CommandError) -> None:
    """The error as two lines: what was found, what to do."""
    from rich.text import Text

    console = problems()
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.remedy:
        console.print(Text(error.remedy))
