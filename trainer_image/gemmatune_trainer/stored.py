"""JSON that others can write: whoever may write to a bucket or publish a model can put anything under any name.

What is read of it has a shape here or beside its reader, and what does not fit is one error, `Unreadable`: infinities
where a number is counted with, thousands of brackets, bytes that are no text, other types than those that are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gemmatune_trainer.errors import InvalidConfig

MISFITS = (AttributeError, KeyError, TypeError, ValueError, OverflowError)
"""What taking JSON apart raises where it has another form."""
_SHOWN_CHARACTERS = 80


class Unreadable(ValueError):
    """A text that is no JSON, or not what should lie there; the message says where it differs."""


class Shape(BaseModel):
    """What has to be in a document; more may be there."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Reads a document. Raises Unreadable."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise Unreadable(shortened(f"{place}: {first['msg']}" if place else first["msg"])) from None


def parsed(text: str | bytes) -> Any:
    """Any JSON. Raises Unreadable."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and bytes that are no UTF-8
        raise Unreadable(str(error)) from error


@contextmanager
def of_checkpoint(path: Path) -> Iterator[None]:
    """Reads a file of a checkpoint whose checksums are right: what is wrong in it was put there.

    Raises:
        InvalidConfig: it cannot be read inside.
    """
    try:
        yield
    except (OSError, *MISFITS) as error:
        raise InvalidConfig(
            f"{path.name} of the checkpoint to resume from cannot be read: {shortened(str(error))}",
            "Delete the newest folder below checkpoints/ in output.uri: the one before it is then used.",
        ) from error


def stays_below(name: str) -> bool:
    """Whether a name, as a path, leads to a file below the folder it is joined to: a bucket's names may hold `..`."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def shortened(text: str) -> str:
    """The beginning of a text of others, for a message: it would else fill a status."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
