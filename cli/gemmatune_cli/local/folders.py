"""Where gft keeps things outside the tree: the user's cache and state folders, by the XDG rules."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "gemmatune"


def _base(variable: str, fallback: str) -> Path:
    # The XDG rules ignore a relative path.
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / fallback


def cache_dir() -> Path:
    """What can be made again: converted models, tokenised data ($XDG_CACHE_HOME or ~/.cache)."""
    return _base("XDG_CACHE_HOME", ".cache") / _NAME


def state_dir() -> Path:
    """What a later `gft run` continues from ($XDG_STATE_HOME or ~/.local/state)."""
    return _base("XDG_STATE_HOME", ".local/state") / _NAME


def data_dir() -> Path:
    """What the user may want to keep: the demo's results ($XDG_DATA_HOME or ~/.local/share)."""
    return _base("XDG_DATA_HOME", ".local/share") / _NAME
