"""Problems of a resource as data: what was found, where, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gemmatune_api.location import Place, locate
from gemmatune_api.names import Reason
from gemmatune_api.patterns import PATTERNS

_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a resource.

    `path` is the field path (`spec.dataset.maxLength`), `found` the value as JSON ("" where nothing was given).
    """

    path: str
    message: str
    remedy: str
    found: str = ""
    reason: Reason = Reason.INVALID_SPEC

    def __str__(self) -> str:
        found = f" (found {self.found})" if self.found else ""
        return f"{self.path}: {self.message}{found}. {self.remedy}".rstrip()


class InvalidResourceError(ValueError):
    """A resource that cannot be run as it stands; carries every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def shown(value: Any) -> str:
    """A value as JSON, cut to a readable length."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        # A number too long to print, or a value nested too deep: its kind has to do.
        text = f"a very large {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


_KINDS = {
    "missing": ("is required", "Add the field."),
    "int_parsing": ("must be a whole number", "Write a whole number without quotes."),
    "int_type": ("must be a whole number", "Write a whole number without quotes."),
    "int_from_float": ("must be a whole number", "Write a whole number."),
    "int_parsing_size": ("is too large", "Write a smaller number."),
    "float_parsing": ("must be a number", "Write a number without quotes."),
    "float_type": ("must be a number", "Write a number without quotes."),
    "finite_number": ("must be a finite number", "Write a number."),
    "bool_parsing": ("must be true or false", "Write true or false without quotes."),
    "bool_type": ("must be true or false", "Write true or false without quotes."),
    "string_type": ("must be a text", "Put quotes around it where YAML reads it as something else."),
    "string_unicode": ("must be valid Unicode", "Remove the lone surrogate character."),
    "list_type": ("must be a list", "Write a list: [a, b]."),
    "model_type": ("must be a block of fields", "Write a block of fields, or {} for one without any."),
    "dict_type": ("must be a block of fields", "Write a block of fields, or {} for one without any."),
}
"""Message and remedy of the kinds of error that need nothing else."""

_MISMATCHES = frozenset(_KINDS) - {"missing", "int_parsing_size", "finite_number", "string_unicode"}
"""Kinds that say only: this branch of a union is of another type."""


_NUMBER_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _entries(number: int) -> str:
    return f"{number} entry" if number == 1 else f"{number} entries"


def _bound(kind: str, context: dict[str, Any]) -> tuple[str, str] | None:
    """Message and remedy of a bound; None where the kind is no bound."""
    if kind in _NUMBER_BOUNDS:
        words, key = _NUMBER_BOUNDS[kind]
        bound = context[key]
        text = f"{bound:g}" if isinstance(bound, float) and abs(bound) < 1e6 else f"{int(bound)}"
        return f"must be {words} {text}", "Write a number in that range."
    if kind == "string_too_short":
        least = context["min_length"]
        return ("must not be empty" if least == 1 else f"must have at least {least} characters"), "Write a text."
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters", "Shorten it."
    if kind == "too_long":
        return f"must have at most {_entries(context['max_length'])}", "Remove some."
    if kind == "too_short":
        return f"must have at least {_entries(context['min_length'])}", "Add one."
    return None


def _said(item: ErrorDetails, place: Place) -> tuple[str, str]:
    """Message and remedy of one error of pydantic."""
    kind, context = item["type"], item.get("ctx", {})
    if kind in _KINDS:
        return _KINDS[kind]
    bound = _bound(kind, context)
    if bound is not None:
        return bound
    if kind == "extra_forbidden":
        name = str(item["loc"][-1])
        near = get_close_matches(name, place.names, n=1, cutoff=0.6) or [
            known for known in place.names if known.lower() == name.replace("_", "").lower()
        ]
        hint = f"did you mean {near[0]}?" if near else f"the fields here are {', '.join(place.names)}"
        return "is no field of this block", f"Remove it, or correct its spelling: {hint}"
    if kind == "string_pattern_mismatch" and context["pattern"] in PATTERNS:
        text = PATTERNS[context["pattern"]]
        return text.message, text.remedy
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        several = "," in choices
        return (
            f"must be one of {choices}" if several else f"must be {choices}"
        ), f"Write {'one of them' if several else 'that'}."
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:], "Correct the value."


def _of_union(items: Sequence[tuple[ErrorDetails, Place]]) -> list[tuple[ErrorDetails, Place, str | None]]:
    """Errors of a union's branches: those of the branch that was meant, or all as one where none is recognisable."""
    meant = [
        (item, place)
        for item, place in items
        if not (item["type"] in _MISMATCHES or (item["type"] == "literal_error" and not isinstance(item["input"], str)))
    ]
    meant = meant or [(item, place) for item, place in items if place.below_union]
    if meant:
        return [(item, place, None) for item, place in meant]
    wanted = [_said(item, place)[0].removeprefix("must be ") for item, place in items]
    return [(*items[0], "must be " + ", or ".join(dict.fromkeys(wanted)))]


def problems_of(error: ValidationError, model: type[BaseModel], root: str = "") -> list[Problem]:
    """The problems that pydantic found in a document of `model`, each with field path, value and remedy.

    `root` is the path of the document itself, for a part of a resource.
    """
    groups: dict[str, list[tuple[ErrorDetails, Place]]] = {}
    for index, item in enumerate(error.errors(include_url=False)):
        place = locate(model, item["loc"], item["type"] == "extra_forbidden", root)
        groups.setdefault(place.union or f"#{index}", []).append((item, place))
    found: dict[str, Problem] = {}
    for name, items in groups.items():
        chosen = [(*pair, None) for pair in items] if name.startswith("#") else _of_union(items)
        for item, place, joined in chosen:
            message, remedy = _said(item, place)
            path = place.path or "the resource"
            given = "" if item["type"] == "missing" else shown(item["input"])
            if joined:
                message, remedy = joined, "Write one of these."
            found.setdefault(path, Problem(path, message, remedy, given))
    return list(found.values())


def either(choices: Sequence[object]) -> str:
    """Choices in words: `1, 2 or 4`."""
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
