"""What every model of the API shares: camelCase on the wire, unknown fields refused, and the text types."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DURATION_PATTERN = r"^([0-9]+[smhd])+$"
OBJECT_NAME_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
OBJECT_KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ApiModel(BaseModel):
    """A block of the resource: camelCase on the wire, docstrings as descriptions, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        frozen=True,
        protected_namespaces=(),
    )


class StatusModel(ApiModel):
    """A block of the status: a newer version's fields are kept out of the way instead of refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


Duration = Annotated[str, Field(pattern=DURATION_PATTERN, max_length=20)]
"""Text such as `90s`, `30m`, `12h` or `1h30m`."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=OBJECT_NAME_PATTERN)]
"""Name of a Kubernetes object."""

ObjectKey = Annotated[str, Field(min_length=1, max_length=253, pattern=OBJECT_KEY_PATTERN)]
"""Key in a Secret or ConfigMap."""


def without_nulls(value: Any) -> Any:
    """A map without its null entries, which the API server drops too; anything else as it is."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


def seconds(duration: str) -> int:
    """Seconds of a duration text.

    Raises:
        ValueError: the text is no sequence of numbers with the units s, m, h, d.
    """
    if not re.fullmatch(DURATION_PATTERN, duration):
        raise ValueError(f"{duration!r} is no duration: write text such as 90s, 30m, 12h or 1h30m")
    return sum(int(number) * _UNIT_SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([smhd])", duration))


def duration_text(total: float) -> str:
    """Shortest readable duration of at most two units (`4320` becomes `1h12m`)."""
    rest = max(0, round(total))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        if amount:
            parts.append(f"{amount}{unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return "".join(parts) or "0s"
