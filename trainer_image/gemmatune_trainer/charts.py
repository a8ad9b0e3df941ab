"""Line charts as inline SVG: no script, no file, colours by the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 32
_TICKS = 5


def line_chart(xs: Sequence[float], ys: Sequence[float], label: str, x_label: str = "step") -> Markup:
    """A line through the finite points; `label` names it for screen readers. Empty where there is no point."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return Markup("")
    x_low, x_high = _span([x for x, _ in points])
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        down = HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in y_ticks:
        down = place(x_low, tick).split(",")[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down}" dy="4" text-anchor="end">{number(tick)}</text>')
    for x, anchor in ((points[0][0], "start"), (points[-1][0], "end")):
        across = place(x, y_low).split(",")[0]
        text = f"{x_label} {number(x)}"
        parts.append(f'<text x="{across}" y="{HEIGHT - 10}" text-anchor="{anchor}">{escape(text)}</text>')
        if len(points) == 1:
            break
    if len(points) == 1:
        across, down = place(*points[0]).split(",")
        parts.append(f'<circle class="dot" cx="{across}" cy="{down}" r="3"/>')
    parts.append(f'<polyline class="curve" points="{" ".join(place(x, y) for x, y in points)}"/></svg>')
    return Markup("".join(parts))  # built from numbers and escaped text alone


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose the values, about five of them."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / (_TICKS - 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """A number with at most 4 digits, as short as it can be."""
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2g}"
