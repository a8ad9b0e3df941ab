"""The text patterns of the resource, each with its meaning in words and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gemmatune_api.base import DURATION_PATTERN, OBJECT_KEY_PATTERN, OBJECT_NAME_PATTERN
from gemmatune_api.names import NAME_PATTERN

MODEL_URI_PATTERN = r"^(hf|kaggle|ms|gs|pvc|file)://.+"
DATASET_URI_PATTERN = r"^(hf|ms|gs|pvc|file)://.+"
OUTPUT_URI_PATTERN = r"^(gs://[^/]+(/.*)?|file:///.+)"
TOPOLOGY_PATTERN = r"^[0-9]+x[0-9]+(x[0-9]+)?$"
RESERVATION_PATTERN = r"^([a-z][-a-z0-9]{4,28}[a-z0-9]/)?[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"


@dataclass(frozen=True, slots=True)
class PatternText:
    """A pattern in words: `message` says what a text must be, `remedy` what to write."""

    message: str
    remedy: str


PATTERNS: Mapping[str, PatternText] = MappingProxyType(
    {
        NAME_PATTERN: PatternText(
            "must begin with a small letter, hold only small letters, digits and -, and end with a letter or digit",
            "Write a name such as quotes-1.",
        ),
        DURATION_PATTERN: PatternText(
            "must be a duration: numbers with the units s, m, h, d", "Write text such as 90s, 30m, 12h or 1h30m."
        ),
        OBJECT_NAME_PATTERN: PatternText(
            "must be the name of a Kubernetes object: small letters, digits, - and ., beginning and ending with a "
            "letter or digit",
            "Write a name such as hf-token.",
        ),
        OBJECT_KEY_PATTERN: PatternText(
            "must be a key of a Secret or ConfigMap: letters, digits, -, _ and .", "Write a key such as HF_TOKEN."
        ),
        MODEL_URI_PATTERN: PatternText(
            "must be an hf://, kaggle://, ms://, gs://, pvc:// or file:// URI",
            "Write a URI such as hf://google/gemma-2-2b.",
        ),
        DATASET_URI_PATTERN: PatternText(
            "must be an hf://, ms://, gs://, pvc:// or file:// URI",
            "Write a URI such as gs://my-bucket/rows.jsonl.",
        ),
        OUTPUT_URI_PATTERN: PatternText(
            "must be a gs:// or file:/// URI", "Write a URI such as gs://my-bucket/quotes."
        ),
        TOPOLOGY_PATTERN: PatternText("must be two or three numbers with x between them", "Write text such as 2x4."),
        RESERVATION_PATTERN: PatternText(
            "must be the name of a reservation, or PROJECT/NAME: small letters, digits and -, beginning with a letter",
            "Write a name such as gpus-2026, or my-project/gpus-2026.",
        ),
        ENV_NAME_PATTERN: PatternText(
            "must be letters, digits and _, not beginning with a digit", "Write a name such as HF_HOME."
        ),
    }
)
"""By regular expression; the expressions mean the same in Python, Rust and Go."""
