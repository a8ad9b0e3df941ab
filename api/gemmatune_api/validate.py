"""A document into a GemmaFineTune, or every problem that it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gemmatune_api import checks, names, supported
from gemmatune_api.base import ApiModel
from gemmatune_api.changes import once_started
from gemmatune_api.errors import InvalidResourceError, Problem, problems_of, shown
from gemmatune_api.spec import FineTuneSpec, GemmaFineTune
from gemmatune_api.supported import REFUSED, Refusal

Model = TypeVar("Model", bound=ApiModel)

_DEPTH = 64
"""Nesting that no resource reaches; deeper documents are refused before they can exhaust the stack."""

_STAND_INS = {"model": "hf://a/b", "dataset": "hf://a/b", "output": "gs://a/b"}


def parse(document: object, refused: Iterable[Refusal] = REFUSED) -> GemmaFineTune:
    """The resource in a JSON document.

    Types are the API server's: "8" is no number, true is not 1, 2.0 is a whole number, null is an absent field.
    `refused` is what counts as not built yet; a shorter table shows what lies below that check.

    Raises:
        InvalidResourceError: carries every problem that pydantic, the cross-field rules and the table of what is not
            built yet find.
    """
    resource, wrong, rest = _model(GemmaFineTune, document, "")
    problems = [*_unnamed(document), *wrong]
    spec = resource.spec if resource else _sound_part(rest.get("spec"))
    found = [*problems, *_further(spec, problems, refused)]
    if found or resource is None:
        raise InvalidResourceError([once_started(item) for item in found] if _attempted(document) else found)
    return resource


def _attempted(document: object) -> bool:
    """Whether the status of a stored resource has attempts: most of its spec is fixed then."""
    status = document.get("status") if isinstance(document, dict) else None
    return isinstance(status, dict) and bool(status.get("attempts"))


def _unnamed(document: object) -> list[Problem]:
    """What a document lacks to be an object of Kubernetes at all; the models have these as defaults for our own use."""
    if not isinstance(document, dict):
        return []
    wanted = {"apiVersion": names.API_VERSION, "kind": names.KIND}
    return [
        Problem(field, "is required", f"Write {field}: {value}.")
        for field, value in wanted.items()
        if document.get(field) is None
    ]


def parse_spec(document: object) -> FineTuneSpec:
    """The spec in a JSON document: what `parse` does, for `spec` alone.

    Raises:
        InvalidResourceError: as `parse`.
    """
    spec, problems, rest = _model(FineTuneSpec, document, "spec")
    found = [*problems, *_further(spec or _sound_part(rest), problems, REFUSED)]
    if found or spec is None:
        raise InvalidResourceError(found)
    return spec


def _further(spec: FineTuneSpec | None, known: Sequence[Problem], refused: Iterable[Refusal]) -> list[Problem]:
    """What the cross-field rules and the table of refusals add, without repeating what is said of the same place."""
    if spec is None:
        return []
    found = [*checks.problems(spec), *supported.unsupported(spec, refused)]
    return [problem for problem in found if not any(_same_place(problem.path, other.path) for other in known)]


def _same_place(path: str, other: str) -> bool:
    short, long = sorted((path, other), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))


def _model(model: type[Model], document: object, root: str) -> tuple[Model | None, list[Problem], dict[str, Any]]:
    """The model in a document, pydantic's problems, and the document without the fields at fault.

    From that rest the cross-field rules can still speak of the other fields.
    """
    if not isinstance(document, dict):
        remedy = "Write a block of fields that begins with apiVersion and kind." if not root else "Write its fields."
        return None, [Problem(root or "the resource", "must be a block of fields", remedy, shown(document))], {}
    if _too_deep(document):
        return None, [Problem(root or "the resource", f"is nested deeper than {_DEPTH} levels", "Flatten it.")], {}
    if halves := list(_halves(document, root)):  # no API server takes it, and no rule can write it down
        return None, halves, {}
    plain = _as_read(document)
    try:
        return _strict(model, plain), [], plain
    except ValidationError as error:
        rest = deepcopy(plain)
        for parent, name in [_at_fault(rest, item) for item in error.errors(include_url=False)]:
            parent.pop(name, None)
        return None, problems_of(error, model, root), rest


def _strict(model: type[Model], document: object) -> Model:
    return model.model_validate(document, strict=True, by_alias=True, by_name=False)


def _sound_part(rest: object) -> FineTuneSpec | None:
    """What is left of a spec with faults, for the cross-field rules; None where too much is missing.

    A URI at fault is replaced by one that no rule objects to: the fault itself is told already.
    """
    if isinstance(rest, dict):
        blocks = {name: rest[name] for name in _STAND_INS if isinstance(rest.get(name), dict)}
        rest = rest | {name: {"uri": _STAND_INS[name], **block} for name, block in blocks.items()}
    try:
        return _strict(FineTuneSpec, rest)
    except ValidationError:
        return None


def _too_deep(document: object) -> bool:
    level = [document]
    for _ in range(_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)


def _halves(value: object, path: str) -> Iterator[Problem]:
    """Texts and names that have no UTF-8; pydantic looks only at texts whose length or pattern is bounded."""
    if isinstance(value, str) and not _is_unicode(value):
        yield Problem(path, "must be valid Unicode", "Remove the lone surrogate character.", shown(value))
    elif isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(name, str) and not _is_unicode(name):
                yield Problem(path, "a name must be valid Unicode", "Remove the lone surrogate character.", shown(name))
            else:
                yield from _halves(inner, f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _halves(inner, f"{path}[{number}]")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _as_read(value: Any) -> Any:
    """A document as the API server reads it: 2.0 is the whole number 2."""
    if isinstance(value, dict):
        return {key: _as_read(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_read(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _at_fault(document: dict[str, Any], item: ErrorDetails) -> tuple[dict[str, Any], Any]:
    """The block and the name in it of the value at fault; names of union branches in the location are passed over."""
    parent, last = document, None
    value: Any = document
    for part in item["loc"]:
        if isinstance(value, dict) and part in value:
            parent, last, value = value, part, value[part]
        elif isinstance(value, list):
            # A list goes as a whole: without one entry the places of the others would change.
            break
    return parent, last
