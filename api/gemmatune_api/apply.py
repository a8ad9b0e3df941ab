"""The text of a server-side apply: JSON that the API server's YAML reader takes as it is meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

CONTENT_TYPE = "application/apply-patch+yaml"

_ESCAPED = {code: f"\\u{code:04x}" for code in (0x7F, *range(0x80, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)}
"""What YAML refuses (control characters) or changes (its line breaks, a byte order mark)."""


def apply_text(body: Mapping[str, Any]) -> bytes:
    """The body of an apply.

    JSON's usual form would escape an emoji as two halves: the API server (measured with 1.36) answers such a body with
    400, "found invalid Unicode character escape code". Here such characters are written as they are. Half a character,
    as in a file's name that is no UTF-8, becomes a question mark.
    """
    try:
        text = to_json(body).decode()
    except PydanticSerializationError:
        text = json.dumps(body, ensure_ascii=False).encode(errors="replace").decode()
    return text.translate(_ESCAPED).encode()
