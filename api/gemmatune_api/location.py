"""Where in a resource an error lies: pydantic's location read along the models, as a field path."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Place:
    """A field path, the fields known around it, and the union that the location passed (its path, or empty)."""

    path: str
    names: tuple[str, ...]
    union: str
    below_union: bool
    """True: the error lies inside the union's value, not at it."""


def arms(annotation: Any) -> list[Any]:
    """The branches of a type without None and Annotated: one for a plain type, several for a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return arms(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [arm for member in get_args(annotation) for arm in arms(member)]
    return [] if annotation is type(None) else [annotation]


def is_model(annotation: Any) -> bool:
    """True for a class of fields."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def aliases(model: type[BaseModel]) -> dict[str, str]:
    """Names on the wire to names in Python, in order."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def _below(annotations: list[Any], part: int | str) -> tuple[list[Any], str] | None:
    """Branches and name of what lies under one step; None where the step names a union's branch, not a field."""
    for annotation in annotations:
        if is_model(annotation) and part in aliases(annotation):
            field = annotation.model_fields[aliases(annotation)[str(part)]]
            return arms(field.annotation), f".{part}"
        if get_origin(annotation) is list and isinstance(part, int):
            return arms(get_args(annotation)[0]), f"[{part}]"
        if get_origin(annotation) is dict and part != "[key]":
            plain = str(part).replace("_", "a").replace("-", "a").isidentifier()
            return arms(get_args(annotation)[1]), f".{part}" if plain else f'["{part}"]'
    return None


def locate(model: type[BaseModel], location: Iterable[int | str], unknown: bool = False, root: str = "") -> Place:
    """The place of an error in a document of `model`: `spec.dataset.text.template`, `spec.samples.prompts[0]`.

    `unknown` says that the last step is a field that the model does not have.
    """
    parts = list(location)
    annotations: list[Any] = [model]
    path, union = root, ""
    names: tuple[str, ...] = ()
    for index, part in enumerate(parts):
        known = [name for annotation in annotations if is_model(annotation) for name in aliases(annotation)]
        names = tuple(known) if known else names
        step = _below(annotations, part)
        if step is not None:
            annotations, name = step
        elif unknown and index == len(parts) - 1:
            name = f".{part}"
        else:
            # The name of a union's branch: go on with that branch where it is a model.
            union = path
            annotations = [arm for arm in annotations if getattr(arm, "__name__", "") == part] or annotations
            continue
        path += name
    path = path.removeprefix(".")
    return Place(path, names, union.removeprefix("."), bool(union) and path != union.removeprefix("."))
