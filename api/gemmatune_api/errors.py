"""Problems of a resource as data: what was found, where, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from gemmatune_api.names import Reason

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
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def dotted(location: Iterable[int | str], root: str = "") -> str:
    """Field path of a pydantic location: `spec.dataset.text.template`, `spec.samples.prompts[0]`."""
    path = root
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.startswith(("function-", "tagged-union", "list[", "constrained-", "str", "dict[")) or "[" in part:
            continue  # pydantic's name of a union's branch, not a field
        elif part.isidentifier() and part[:1].isupper():
            continue  # likewise: the class name of a union's branch
        else:
            path += ("." if path else "") + (to_camel(part) if "_" in part else part)
    return path


_REMEDIES = {
    "missing": "Add the field.",
    "extra_forbidden": "Remove the field or correct its spelling; `kubectl explain gft.spec` lists the fields.",
    "int_parsing": "Write a whole number.",
    "int_type": "Write a whole number.",
    "int_from_float": "Write a whole number.",
    "float_parsing": "Write a number.",
    "float_type": "Write a number.",
    "bool_parsing": "Write true or false.",
    "bool_type": "Write true or false.",
    "string_type": "Write a text; put quotes around it if YAML reads it as something else.",
    "list_type": "Write a list.",
    "model_type": "Write a block of fields.",
    "dict_type": "Write a block of fields.",
}


def problems_of(error: ValidationError, root: str = "") -> list[Problem]:
    """The problems that pydantic found, each with field path, value and remedy."""
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        path = dotted(item["loc"], root)
        message = item["msg"].removeprefix("Value error, ")
        remedy = _REMEDIES.get(item["type"], "Correct the value.")
        if item["type"] == "value_error" and ". " in message:
            message, remedy = message.split(". ", 1)
        missing = item["type"] == "missing"
        found.setdefault(
            path,
            Problem(
                path=path,
                message=message[:1].lower() + message[1:].rstrip("."),
                remedy=remedy,
                found="" if missing else shown(item["input"]),
            ),
        )
    return list(found.values())
