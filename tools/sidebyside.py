"""The table of docs/backends.md that holds the three backends against each other, from what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemmatune_api.docgen import table
from tools.sections import GIB, mib, spread

PAGE = "docs/backends.md"
BACKENDS = ("torch", "xla", "keras")
BEGIN, END = "<!-- measured: written by `make generate` -->", "<!-- end of measured -->"
MANY = 8
"""The number of devices that is held against one."""

Line = dict[str, Any]


def document(root: Path) -> str:
    """The page as it is, with the table made anew.

    Raises:
        ValueError: the page has no place for it.
    """
    text = (root / PAGE).read_text()
    place = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not place.search(text):
        raise ValueError(f"{PAGE} has no {BEGIN} with {END} after it")
    results = root / "bench/results"
    made = compared(json.loads((results / "tpu.json").read_text()), json.loads((results / "parity.json").read_text()))
    return place.sub(lambda _: f"{BEGIN}\n{made}\n{END}", text)


def compared(speed: Line, parity: Line) -> str:
    """A column for each backend: of the TPU benchmark with AdamW, and of the run by all three."""
    losses = {one["adapter"]: one for one in parity["results"]}
    shown: dict[str, Callable[[str], str]] = {
        "seconds a step on one device (median, least and most)": lambda arm: _of(speed, arm, 1, _seconds),
        f"on {MANY} virtual devices": lambda arm: _of(speed, arm, MANY, _seconds),
        "seconds to compile for one device": lambda arm: _of(speed, arm, 1, _compiling),
        f"for {MANY}": lambda arm: _of(speed, arm, MANY, _compiling),
        "most memory of the process with one device": lambda arm: _of(speed, arm, 1, _peak),
        f"with {MANY}": lambda arm: _of(speed, arm, MANY, _peak),
        f"weights on a device of {MANY}, of the whole": lambda arm: _of(speed, arm, MANY, _weights),
        f"held-out loss ({losses['none: the base']['held_out']:.3f} untrained)": lambda arm: (
            f"{losses[arm]['held_out']:.4f}" + ("" if arm == "torch" else f" ({100 * losses[arm]['apart']:+.2f}%)")
        ),
    }
    rows = ((what, *map(value, BACKENDS)) for what, value in shown.items())
    return "\n".join(table(("measured", *(f"`{arm}`" for arm in BACKENDS)), rows))


def _of(speed: Line, arm: str, devices: int, value: Callable[[Line], str]) -> str:
    """A value of the line for a backend on that many devices; a dash where there is none."""
    found = [
        line
        for line in speed["lines"]
        if (line["arm"], line["devices"], line["optimizer"]) == (arm, devices, "adamw_torch")
    ]
    return value(found[0]) if found else "-"


def _seconds(line: Line) -> str:
    return spread(line["seconds"])


def _compiling(line: Line) -> str:
    return f"{line['compile_seconds']:.0f}" if line["compilations"] else "-"


def _peak(line: Line) -> str:
    return f"{line['peak'] / GIB:.1f} GiB"


def _weights(line: Line) -> str:
    return f"{mib(line['weights'])} of {mib(line['whole'])} MiB"
