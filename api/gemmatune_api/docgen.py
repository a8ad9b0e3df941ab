"""The reference of the API as Markdown, from the models' docstrings and the tables in names.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from gemmatune_api import cel, names
from gemmatune_api.base import DURATION_PATTERN, ApiModel
from gemmatune_api.location import arms, is_model
from gemmatune_api.names import EXIT_REASONS, REASONS, ConditionType, ExitCode, Phase
from gemmatune_api.patterns import PATTERNS
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import FineTuneStatus
from gemmatune_api.supported import REFUSED, Refusal

HEADER = "<!-- Generated from api/gemmatune_api by `make generate`; do not edit. -->\n"

_DEFAULT = re.compile(r"\s*Default:? (.+?)\.?$", re.DOTALL)
_SIGNS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def document() -> str:
    """docs/api.md."""
    parts = [
        HEADER,
        f"# {names.KIND}\n",
        f"API version `{names.API_VERSION}`, short name `{names.SHORT_NAME}`. "
        f"`kubectl explain {names.SHORT_NAME}.spec` shows the same text.\n",
        "Durations are text such as `90s`, `30m`, `12h` or `1h30m`. Fields without a default are optional unless "
        "marked as required. The status shows under `resolved` what every default became.\n",
        f"The name has at most {names.NAME_MAX_LENGTH} characters: small letters, digits and `-`, beginning with a "
        "letter.\n",
        "## spec\n",
        *_blocks(FineTuneSpec, "spec"),
        "## What may change when\n",
        *_changes(),
        "## What does not exist yet\n",
        f"These values of fields are part of the API, and refused with reason `{names.Reason.NOT_SUPPORTED_YET}`.\n",
        *_refused(),
        "## status\n",
        *_blocks(FineTuneStatus, "status"),
        "## Phases\n",
        _list(phase.value for phase in Phase),
        "## Conditions\n",
        _list(condition.value for condition in ConditionType),
        f"`{ConditionType.FINISHED}` is true for either end: "
        f"`kubectl wait --for=condition={ConditionType.FINISHED}`.\n",
        "## Reasons\n",
        *table(("Reason", "Meaning", "What to do"), _reasons()),
        "## Exit codes of the trainer\n",
        *table(("Code", "Reason"), _exits()),
    ]
    return "\n".join(parts)


def _list(items: Iterator[str]) -> str:
    return ", ".join(f"`{item}`" for item in items) + ".\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a Markdown table, an empty one at the end."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
    yield ""


def _blocks(model: type[ApiModel], path: str) -> Iterator[str]:
    """The table of a block, then those of the blocks below it, depth first."""
    yield from table(("Field", "Type", "Default", "Meaning"), _rows(model))
    for name, field in model.model_fields.items():
        for child, suffix in _children(field):
            below = f"{path}.{field.alias or name}{suffix}"
            yield f"### {below}\n"
            if child.__doc__:
                yield f"{child.__doc__}\n"
            if child.model_fields:
                yield from _blocks(child, below)


def _children(field: FieldInfo) -> Iterator[tuple[type[ApiModel], str]]:
    for arm in arms(field.annotation):
        if is_model(arm):
            yield arm, ""
        elif get_origin(arm) is list:
            yield from ((inner, "[]") for inner in arms(get_args(arm)[0]) if is_model(inner))


def _rows(model: type[ApiModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        text = field.description or ""
        default = _DEFAULT.search(text)
        if default:
            text = text[: default.start()]
        shown = "**required**" if field.is_required() else default[1] if default else ""
        yield f"`{field.alias or name}`", _type(field), shown, text


def _type(field: FieldInfo) -> str:
    words = " or ".join(dict.fromkeys(_arm(arm) for arm in arms(field.annotation)))
    patterns = _constraint(field, "pattern")
    if DURATION_PATTERN in patterns:
        return "duration"
    bounds = [_SIGNS[sign].format(_number(value)) for sign in _SIGNS for value in _constraint(field, sign)]
    bounds += [f"at most {value}" for value in _constraint(field, "max_length") if _counts(field)]
    bounds += [
        PATTERNS[pattern].message.removeprefix("must ").removeprefix("be ")
        for pattern in patterns
        if pattern in PATTERNS
    ]
    return f"{words}; {', '.join(bounds)}" if bounds else words


def _counts(field: FieldInfo) -> bool:
    return any(get_origin(arm) in (list, dict) for arm in arms(field.annotation))


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _constraint(field: FieldInfo, name: str) -> list[Any]:
    """Values of a constraint on a field itself, or inside its Annotated branches."""
    found = [*field.metadata]
    pending = [field.annotation]
    while pending:
        annotation = pending.pop()
        for item in getattr(annotation, "__metadata__", ()):
            found += getattr(item, "metadata", None) or [item]
        if get_origin(annotation) not in (list, dict, Literal):
            pending += get_args(annotation)
    values = [getattr(item, name, None) for item in found]
    return list(dict.fromkeys(value for value in values if value is not None))


def _arm(arm: Any) -> str:
    origin = get_origin(arm)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(arm))
    if origin is list:
        inner = [_arm(item) for item in arms(get_args(arm)[0])]
        return f"list of {' or '.join(inner)}"
    if origin is dict:
        return f"map of {' or '.join(_arm(item) for item in arms(get_args(arm)[1]))}"
    if is_model(arm):
        return "block"
    return {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}[arm]


def _changes() -> Iterator[str]:
    paused = [*cel.PAUSED, *(f"training.{name}" for name in cel.PAUSED_TRAINING)]
    yield f"- Until the first attempt exists: everything under `spec`. From then on always: {_list(iter(cel.ALWAYS))}"
    yield f"- While the run is suspended (`suspend` before or after the change) or failed also: {_list(iter(paused))}"
    yield f"- The rest never: {_list(iter([*cel.FIXED, 'training']))}"


def _refused() -> Iterator[str]:
    yield from table(
        ("Field", "Values", "Why", "Instead"),
        (
            (
                f"`spec.{'.'.join(_camel(part) for part in item.path.split('.'))}`",
                _values(item),
                item.why,
                item.remedy,
            )
            for item in REFUSED
        ),
    )


def _values(item: Refusal) -> str:
    """Which values of a field are refused, and where."""
    values = ", ".join(f"`{text}`" for text in item.refused)
    return f"{values} {item.where}".strip() or "any"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def _reasons() -> Iterator[tuple[str, ...]]:
    for reason, text in REASONS.items():
        yield f"`{reason.value}`", text.meaning, text.remedy


def _exits() -> Iterator[tuple[str, ...]]:
    for code in ExitCode:
        yield str(code.value), f"`{EXIT_REASONS[code].value}`" if code in EXIT_REASONS else "done"
