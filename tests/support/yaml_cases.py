"""YAML texts with the value that kubectl reads from them: unit tests and the parity test share the table."""

from __future__ import annotations

from typing import Any

HEAD = "apiVersion: gemmatune.dev/v1alpha1\nkind: GemmaFineTune\nmetadata: {name: quotes}\n"

SCALARS: dict[str, Any] = {
    # texts that YAML 1.1 reads as truth values
    **dict.fromkeys(["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"], True),
    **dict.fromkeys(["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"], False),
    **{text: text for text in ("tRue", "yEs", "oN", "t", "f")},
    **dict.fromkeys(["~", "null", "Null", "NULL", ""], None),
    "nUll": "nUll",
    # whole numbers
    "010": 8,
    "0o10": 8,
    "0O7": 7,
    "+010": 8,
    "08": 8,
    "0_7": 7,
    "00": 0,
    "-0": 0,
    "1_0": 10,
    "1__0": 10,
    "1_": 1,
    "_1": "_1",
    "1_000_000": 1000000,
    "+5": 5,
    "-5": -5,
    "0x1F": 31,
    "0X1f": 31,
    "-0x10": -16,
    "0x": "0x",
    "0b101": 5,
    "0b2": "0b2",
    "0o9": "0o9",
    # numbers
    "2e-4": 0.0002,
    "2E4": 20000,
    "1e+3": 1000,
    "1.5e3": 1500,
    "12e03": 12000,
    "1.e5": 100000,
    "1e": "1e",
    "e5": "e5",
    "2.0": 2,
    ".5": 0.5,
    "-.5": -0.5,
    "5.": 5,
    "0.1_0": 0.1,
    "1,000": "1,000",
    "1e400": "1e400",
    "99999999999999999999": 100000000000000000000,
    # texts that PyYAML reads otherwise
    "1:30": "1:30",
    "190:20:30": "190:20:30",
    "2026-01-02": "2026-01-02",
    "2026-01-02T03:04:05Z": "2026-01-02T03:04:05Z",
    "=": "=",
    "<<": "<<",
    "nvidia-l4": "nvidia-l4",
    "'010'": "010",
    '"yes"': "yes",
    "!!str 5": "5",
    "!!int '7'": 7,
}
"""A scalar without quotes (mostly), and its value."""

NOT_FINITE = (".inf", "-.Inf", "+.INF", ".nan", ".NaN")

DOCUMENTS: dict[str, tuple[str, Any]] = {
    "a merge": ("b: &x {p: 1, q: 2}\nc: {<<: *x, q: 3}\n", {"b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 3}}),
    "a merge after a key": ("b: &x {p: 1, q: 2}\nc: {q: 3, <<: *x}\n", {"b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 2}}),
    "a merge of several": (
        "b: &x {p: 1}\nd: &y {p: 2, r: 1}\nc: {<<: [*x, *y]}\n",
        {"b": {"p": 1}, "d": {"p": 2, "r": 1}, "c": {"p": 1, "r": 1}},
    ),
    "an alias": ("a: &a [1, 2]\nb: *a\n", {"a": [1, 2], "b": [1, 2]}),
    "keys that are no texts": ("{1: a, true: b, 1.5: c}\n", {"1": "a", "true": "b", "1.5": "c"}),
    "blocks of text": ("a: |\n  x\n  y\nb: >-\n  x\n  y\n", {"a": "x\ny\n", "b": "x y"}),
    "a comment": ("a: b#c #d\n", {"a": "b#c"}),
    "a key without a value": ("{a}\n", {"a": None}),
    "escapes": ('a: "\\x1b\\u00e9"\n', {"a": "\x1bé"}),
    "a dash line inside a text": ("a: |\n  x\n  ---\n  y\n", {"a": "x\n---\ny\n"}),
}
"""Blocks of YAML, and their value."""

REFUSED: dict[str, str] = {
    "a tab": "a:\n\t- 1\n",
    "an unknown alias": "a: *nope\n",
    "an alias of itself": "a: &a [*a]\n",
    "a bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(7)),
    "a key that is null": "{null: a}\n",
    "a key that is a list": "? [a]\n: 1\n",
    "two colons": "a: b: c\n",
    "a percent sign": "a: %b\n",
    "a control character": "a: b\x7fc\n",
    "half a surrogate": 'a: "\\ud83d"\n',
}
"""Blocks that kubectl does not read."""
