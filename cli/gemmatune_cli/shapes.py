"""What gft reads of a manifest: anybody may have written it, so that it is held against this before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gemmatune_api.errors import shown
from gemmatune_cli.console import CommandError


class _Shape(BaseModel):
    """Fields that are read; others may be there."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Named(_Shape):
    name: str


class _Base(_Shape):
    name: str = ""
    revision: str | None = None


class _Method(_Shape):
    rank: int | None = None
    servedRank: int | None = None


class _Sample(_Shape):
    prompt: str
    before: str | None = None
    after: str | None = None


class _Evaluation(_Shape):
    step: int
    loss: float


class Manifest(_Shape):
    """manifest.json of a finished run."""

    run: _Named
    base: _Base = _Base()
    method: _Method = _Method()
    artifacts: dict[str, Any] = {}
    source: dict[str, Any] = {}
    model: dict[str, Any] | list[Any] = {}
    """What was tuned, as in `source`, which older manifests have not; of full tuning the files of the result."""
    settings: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    data: dict[str, Any] = {}
    verified: dict[str, Any] | None = None
    samples: list[_Sample] = []
    evaluations: list[_Evaluation] = []
    warnings: list[str] = []
    memory: float | None = None


class Before(_Shape):
    """samples/before.json of a run that trains."""

    prompts: list[str]
    answers: list[str]


def check(uri: str, found: Mapping[str, Any], shape: type[BaseModel]) -> None:
    """Raises CommandError where a file has another shape, with the field and what it holds."""
    try:
        shape.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        holds = "" if first["type"] == "missing" else f" (found {shown(first['input'])})"
        message = f"{uri} is not what gemmatune writes: {where}: {first['msg']}{holds}"
        raise CommandError(message, "Name the output of a finished run.") from error
