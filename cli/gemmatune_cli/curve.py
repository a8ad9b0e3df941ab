"""A curve for a terminal: two by four points in each character, with its bounds at the axes."""

from __future__ import annotations

from collections.abc import Sequence

_BLANK = 0x2800
"""The Braille character without a point."""
_POINTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bit of each point of a Braille character, by column and row from the top."""
_WIDE, _HIGH = len(_POINTS), len(_POINTS[0])


def curve(xs: Sequence[float], ys: Sequence[float], columns: int, lines: int) -> list[str]:
    """The points joined by lines, with the bounds of y on the left and those of x below.

    Args:
        xs: not decreasing, or what is drawn is no curve.
        ys: as many.
        columns: of the whole text.
        lines: of the curve; one more holds the bounds of x.

    Returns:
        Lines of text; none where there are fewer than two points, or no room.
    """
    points = list(zip(xs, ys, strict=False))
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return []
    low, high = min(y for _, y in points), max(y for _, y in points)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels))
    width = columns - margin - 2
    if width < 8 or lines < 2:
        return []
    rows = _drawn(points, (low, high), width, lines)
    left = [labels[0], *[""] * (lines - 2), labels[1]]
    text = [f"{label:>{margin}} ┤{row}" for label, row in zip(left, rows, strict=True)]
    first, last = f"{points[0][0]:g}", f"{points[-1][0]:g}"
    text.append(" " * (margin + 2) + first + last.rjust(width - len(first)))
    return text


def _drawn(points: Sequence[tuple[float, float]], bounds: tuple[float, float], columns: int, lines: int) -> list[str]:
    """The curve in characters, from the top."""
    cells = [[_BLANK] * columns for _ in range(lines)]
    (start, _), (end, _) = points[0], points[-1]
    low, high = bounds
    span = high / 2 - low / 2  # of halves: the whole may be more than a number can hold
    last = lines * _HIGH - 1
    segment = 0
    before: int | None = None
    for column in range(columns * _WIDE):
        x = start + (end - start) * column / (columns * _WIDE - 1)
        while segment < len(points) - 2 and points[segment + 1][0] <= x:
            segment += 1
        (x0, y0), (x1, y1) = points[segment], points[segment + 1]
        part = 1.0 if x1 == x0 else max(0.0, min(1.0, (x - x0) / (x1 - x0)))
        y = y0 * (1 - part) + y1 * part
        row = round((high / 2 - y / 2) / span * last) if span else lines * _HIGH // 2
        row = max(0, min(last, row))
        # A steep piece is drawn through, so that the curve has no gaps.
        for each in range(
            min(row, before if before is not None else row), max(row, before if before is not None else row) + 1
        ):
            if each != before or each == row:
                cells[each // _HIGH][column // _WIDE] |= _POINTS[column % _WIDE][each % _HIGH]
        before = row
    return ["".join(map(chr, line)) for line in cells]
