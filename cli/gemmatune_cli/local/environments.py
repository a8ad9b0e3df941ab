"""Which Python of this machine has the libraries of a training backend: backends have environments side by side."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from gemmatune_api.environments import FOLDERS, LIBRARIES
from gemmatune_api.names import ENV_RUN
from gemmatune_api.spec import Backend


def python_of(backend: Backend) -> Path | None:
    """This Python where it has the backend's libraries, else that of the environment beside its own; None: neither."""
    if importlib.util.find_spec(LIBRARIES[backend]) is not None:
        return Path(sys.executable)
    beside = Path(sys.prefix).parent / FOLDERS[backend]
    python = beside / "bin" / "python"
    installed = any(beside.glob(f"lib/python3*/site-packages/{LIBRARIES[backend]}"))
    return python if installed and python.exists() else None


def backend_of_pod(variables: Mapping[str, str]) -> Backend | None:
    """The backend that a container's environment asks for; None for one that runs no trainer."""
    found = json.loads(variables.get(ENV_RUN) or "{}").get("backend")
    return found if found in LIBRARIES else None
