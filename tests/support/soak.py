"""How often a test of faults repeats: once in CI, with full counts where GEMMATUNE_SOAK is set (`make soak`)."""

from __future__ import annotations

import os

import pytest

SOAK = bool(os.environ.get("GEMMATUNE_SOAK"))

only_in_soak = pytest.mark.skipif(not SOAK, reason="runs in `make soak`")
"""For tests that CI leaves out."""


def repeats(full: int) -> int:
    """`full` in a soak, else 1."""
    return full if SOAK else 1
