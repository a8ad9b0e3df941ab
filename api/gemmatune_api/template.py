"""Templates of rows: text with {column} in place of values, read the same by checks and trainer."""

from __future__ import annotations

_EXCERPT = 20


class TemplateError(ValueError):
    """A brace that neither names a column nor is doubled; the text says where."""


def parse(template: str) -> list[tuple[str, str | None]]:
    """A template as pairs of literal text and the column that follows it (None at the end).

    `{column}` is replaced, `{{` and `}}` are braces.

    Raises:
        TemplateError: a brace is not closed, names no column, or closes nothing.
    """
    parts: list[tuple[str, str | None]] = []
    literal, position = "", 0
    while position < len(template):
        pair, character = template[position : position + 2], template[position]
        if pair in ("{{", "}}"):
            literal += pair[0]
            position += 2
        elif character == "{":
            end = template.find("}", position)
            column = template[position + 1 : end] if end > 0 else ""
            if not column.strip() or "{" in column:
                raise TemplateError(_where(template, position, "names no column"))
            parts.append((literal, column))
            literal, position = "", end + 1
        elif character == "}":
            raise TemplateError(_where(template, position, "closes nothing"))
        else:
            literal += character
            position += 1
    return [*parts, (literal, None)]


def columns(template: str) -> tuple[str, ...]:
    """The columns that a template reads, in order, each once.

    Raises:
        TemplateError: as `parse`.
    """
    return tuple(dict.fromkeys(column for _, column in parse(template) if column is not None))


def _where(template: str, position: int, what: str) -> str:
    excerpt = template[position : position + _EXCERPT]
    return f"the brace at character {position + 1} {what}: {excerpt!r}"
