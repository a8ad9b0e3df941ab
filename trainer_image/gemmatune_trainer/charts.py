"""Line charts as inline SVG: no script, no file, colours by the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, WIDE, HEIGHT = 640, 800, 250
"""Units of a chart, and the width of one that has a row for itself."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 14, 34
_TICKS = 5
_DOTS = 24
"""Up to so many points are also drawn as dots."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: `name` stands in the legend, where there are several; `style` is its CSS class."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "first"

    def points(self) -> list[tuple[float, float]]:
        """The points whose numbers are finite."""
        pairs = zip(self.xs, self.ys, strict=True)
        return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def chart(series: Sequence[Series], label: str, marks: Sequence[float] = (), width: int = WIDTH) -> Markup:
    """Lines over steps; `label` names the chart for screen readers, `marks` are upright lines. Empty without points."""
    drawn = [(item, points) for item in series if (points := item.points())]
    if not drawn:
        return Markup("")
    everything = [point for _, points in drawn for point in points]
    x_low, x_high = _span([x for x, _ in everything])
    y_ticks = ticks(min(y for _, y in everything), max(y for _, y in everything))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in y_ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{down(tick):.1f}" dy="4" text-anchor="end">{number(tick)}</text>')
    parts += [
        f'<text x="{across(tick):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{number(tick)}</text>'
        for tick in whole_ticks(x_low, x_high)
    ]
    parts += [
        f'<line class="mark" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{_TOP}" y2="{down(y_low):.1f}"/>'
        for x in marks
        if x_low < x < x_high
    ]
    for item, points in drawn:
        style = escape(item.style)
        if len(points) <= _DOTS:
            parts += [f'<circle class="dot {style}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3"/>' for x, y in points]
        places = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve {style}" points="{places}"/>')
    parts.append("</svg>")
    return Markup("".join(parts))  # built from numbers and escaped text alone


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def whole_ticks(low: float, high: float) -> list[int]:
    """Up to eight whole numbers for steps between two values."""
    step = max(1, round(_round_step(max(high - low, 1.0), parts=7)))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose the values, about five of them."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = _round_step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _round_step(span: float, parts: int = _TICKS - 1) -> float:
    """A round distance of ticks: 1, 2, 2.5 or 5 times a power of ten."""
    raw = span / parts
    size = 10.0 ** math.floor(math.log10(raw))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))


def number(value: float) -> str:
    """A number with at most 4 digits, or a whole one of up to 6, as short as it can be."""
    if 1e4 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2g}"
