"""What a trainer leaves as its termination message, and how the operator reads it."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import Field, field_validator

from gemmatune_api.base import StatusModel
from gemmatune_api.names import TERMINATION_MESSAGE_BYTES
from gemmatune_api.status import DataStatus


class TerminationMessage(StatusModel):
    """The end of a train or merge process."""

    reason: str = ""
    """One word of names.Reason."""
    message: str = ""
    """What happened."""
    remedy: str = ""
    """What to do."""
    step: int | None = None
    """Step that was reached."""
    manifest: str | None = None
    """The verified manifest of a finished run."""
    sequences: int | None = None
    """Sequences that a pass really had in each group of devices, where their memory did not suffice; absent: unknown.

    Fewer than the micro-batch, where the rows of a step fill no more: a smaller micro-batch then changes nothing.
    """


Message = TypeVar("Message", bound=TerminationMessage)


class PreparedModel(StatusModel):
    """The model that prepare found."""

    family: str
    """model_type of its config.json, such as gemma3_text."""
    size: str | None = None
    """Name in the catalog, such as gemma-3-270m; None where the shape matches none."""
    revision: str = ""
    """Resolved commit of a hub repository, or a hash of the files elsewhere."""
    shape: dict[str, Any] = Field(default_factory=dict)
    """The numbers of config.json that the planner reads."""

    @field_validator("shape")
    @classmethod
    def _flat(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """Without what no planner reads: a status that is nested deep would keep whoever reads it from reading."""
        return {
            name: {part: number for part, number in value.items() if not isinstance(number, dict | list)}
            if isinstance(value, dict)
            else value
            for name, value in shape.items()
            if not isinstance(value, list)
        }


class PrepareResult(TerminationMessage):
    """The end of a prepare process; model and data are set when it succeeded."""

    model: PreparedModel | None = None
    """The model."""
    data: DataStatus | None = None
    """The data."""


def to_text(message: TerminationMessage) -> str:
    """The message as JSON of at most 3,500 bytes: its largest part is cut as far as needed."""
    data = message.model_dump(by_alias=True, exclude_none=True)
    while (excess := len((text := _json(data)).encode()) - TERMINATION_MESSAGE_BYTES) > 0:
        _cut(data, excess)
    return text


def _json(value: Any) -> str:
    # A lone surrogate, which a file name can bring into an error's text, has no UTF-8.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


def _cut(block: dict[str, Any], excess: int) -> None:
    """Shortens the largest text in a block, or takes out its largest entry that is no text."""
    largest = max(block, key=lambda name: len(_json(block[name])))
    value = block[largest]
    if isinstance(value, str) and value:
        block[largest] = value[: -(excess // 4 + 1)]
    elif isinstance(value, dict) and value:
        _cut(value, excess)
    else:
        del block[largest]


def from_text(text: str | None, kind: type[Message]) -> Message | None:
    """The message in a text; None where there is none or it cannot be read (a cause, never an exception)."""
    try:
        data = json.loads(text or "")
        return kind.model_validate(data) if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        return None
