"""Bar charts of docs/performance.md as SVG files, readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, LINE, LEFT, RIGHT = 720, 24, 190, 150
"""Units of a chart: its width, a bar's line, and the room for names and for figures."""


@dataclass(frozen=True)
class Bar:
    """One bar: the median, and the least and the most of the repeats as a thin line over it."""

    name: str
    value: float
    low: float
    high: float
    ours: bool


@dataclass(frozen=True)
class Group:
    """Bars that share a scale; `unit` stands behind each figure."""

    title: str
    unit: str
    bars: Sequence[Bar]


def draw(groups: Sequence[Group], label: str) -> str:
    """The groups below each other; `label` names the picture for screen readers."""
    height = sum(LINE * (len(group.bars) + 1) + 14 for group in groups)
    parts: list[str] = []
    top = 0
    for group in groups:
        parts += _group(group, top)
        top += LINE * (len(group.bars) + 1) + 14
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    style = (
        "<style>text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}"
        ".plain{fill:#8a94a6}.ours{fill:#2f7ed8}.spread{stroke:#24292f;stroke-width:1.5}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.spread{stroke:#e6edf3}}</style>"
    )
    return "\n".join([str(head.format(WIDTH, height, label)), style, *parts, "</svg>"]) + "\n"


def _group(group: Group, top: int) -> list[str]:
    most = max(bar.high for bar in group.bars) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / most
    shown = [str(Markup('<text class="title" x="0" y="{}">{}</text>').format(top + 17, group.title))]
    for index, bar in enumerate(group.bars, start=1):
        y = top + index * LINE
        middle = y + LINE / 2 - 2
        line = Markup(
            '<text x="{}" y="{:g}" text-anchor="end">{}</text>'
            '<rect class="{}" x="{}" y="{}" width="{:.1f}" height="{}" rx="2"/>'
            '<line class="spread" x1="{:.1f}" x2="{:.1f}" y1="{:g}" y2="{:g}"/>'
            '<text x="{:.1f}" y="{:g}">{:,.0f} {}</text>'
        )
        shown.append(
            str(
                line.format(
                    LEFT - 8, middle + 5, bar.name,
                    "ours" if bar.ours else "plain", LEFT, y + 2, bar.value * scale, LINE - 8,
                    LEFT + bar.low * scale, LEFT + bar.high * scale, middle, middle,
                    LEFT + bar.high * scale + 8, middle + 5, bar.value, group.unit,
                )
            )
        )  # fmt: skip
    return shown
