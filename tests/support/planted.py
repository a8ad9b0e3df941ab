"""Secrets that a test plants: values that stand nowhere else, and where one has turned up."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from urllib.parse import quote

PLANTED = {
    "HF_TOKEN": "hf_PLANTEDdoNotShow1",
    "MLFLOW_TRACKING_TOKEN": "PLANTEDdoNotShow/2+",
    "TEAM_KEY": "PLANTEDdoNotShow3",
}


def turned_up(places: Iterable[tuple[str, bytes]], planted: Mapping[str, str] = PLANTED) -> list[str]:
    """Which secret lies in which of the places (name, content), also in base64 or as a part of an address."""
    return [
        f"{name} in {place}"
        for place, content in places
        for name, value in planted.items()
        if any(form in content for form in _forms(value))
    ]


def _forms(value: str) -> set[bytes]:
    return {value.encode(), base64.b64encode(value.encode()), quote(value, safe="").encode()}
