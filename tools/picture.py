"""The picture of README: a terminal with the transcript of a real `gft demo`, as SVG without anything from elsewhere.

`gft demo | python -m tools.picture docs/pictures/demo.svg` (`make picture`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 104
BEGIN = "Runs "
"""How the first line begins that is shown: what comes before names folders of the machine."""
FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
_STYLES = {"Completed": "bold green", "Running": "bold cyan", "Prepared": "bold", "Preparing": "bold"}
_EVENT = re.compile(r"(\d\d:\d\d:\d\d )(\w+)(.*)")
_LABEL = re.compile(r"(prompt|before|after|adapter|report|manifest|serve)( +)(.*)")
_LOSS = re.compile(r"(step \S+)(  loss \S+)(.*)")


def draw(transcript: str) -> str:
    """The SVG of a transcript.

    Errors: ValueError for a transcript without a run.
    """
    lines = transcript.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(BEGIN)), None)
    if start is None:
        raise ValueError(f"the transcript has no line that begins with {BEGIN!r}: was it a run?")
    shown = [line for line in lines[start + 1 :] if not line.startswith(("folder ", "seconds ")) and not _between(line)]
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, highlight=False)
        console.print(Text.assemble(("$ ", "dim"), ("make demo", "bold")))
        for line in shown:
            console.print(_styled(line), overflow="fold")
        return console.export_svg(title="gemmatune", theme=MONOKAI, code_format=FORMAT, unique_id="demo") + "\n"


def _between(line: str) -> bool:
    """Whether a line tells of a step that need not be shown: all but the first and each fifth."""
    found = re.match(r"step (\d+)/", line)
    return found is not None and (step := int(found[1])) != 1 and (step == 0 or step % 5 != 0)


def _styled(line: str) -> Text:
    if found := _EVENT.fullmatch(line):
        return Text.assemble((found[1], "dim"), (found[2], _STYLES.get(found[2], "yellow")), found[3])
    if found := _LABEL.fullmatch(line):
        return Text.assemble((found[1] + found[2], "dim"), (found[3], "green" if found[1] == "after" else ""))
    if found := _LOSS.fullmatch(line):
        return Text.assemble((found[1], "dim"), (found[2], "cyan"), (found[3], "dim"))
    return Text(line)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(re.sub(r"[ \t]+$", "", draw(sys.stdin.read()), flags=re.MULTILINE), encoding="utf-8")
