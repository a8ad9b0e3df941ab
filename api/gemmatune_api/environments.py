"""The environments of the training backends: each has libraries of its own, which conflict with the others'."""

from __future__ import annotations

from gemmatune_api.spec import Backend

LIBRARIES: dict[Backend, str] = {"torch": "trl", "xla": "torch_xla", "keras": "keras_hub"}
"""The module that a backend's environment has and the others' have not."""
FOLDERS: dict[Backend, str] = {"torch": ".venv", "xla": ".venv-xla", "keras": ".venv-keras"}
"""Folders of the environments, side by side."""


def how_to_install(backend: Backend) -> str:
    """What installs a backend's environment: in a checkout, and elsewhere."""
    target = "setup" if backend == "torch" else f"setup-{backend}"
    return (
        f"In a checkout: `make {target}`. Elsewhere: an environment {FOLDERS[backend]} beside this one, "
        f"with `pip install 'gemmatune[{backend}]'`."
    )
