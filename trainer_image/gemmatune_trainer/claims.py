"""Volumes of the cluster (pvc://CLAIM/PATH): the operator mounts each claim read-only into a folder of its name."""

from __future__ import annotations

import os
from pathlib import Path

from gemmatune_api.names import DEFAULT_CLAIMS, ENV_CLAIMS
from gemmatune_trainer.errors import InvalidConfig


def path_of(uri: str) -> str:
    """The path of a pvc:// URI in this process's file system; it may hold wildcards.

    Raises:
        InvalidConfig: the claim is not mounted here, or the path leads out of it.
    """
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    if ".." in path.split("/"):
        raise InvalidConfig(f"{uri}: the path leads out of the volume", "Name a path inside the claim.")
    folder = Path(os.environ.get(ENV_CLAIMS) or DEFAULT_CLAIMS) / claim
    if not folder.is_dir():
        raise InvalidConfig(
            f"{uri}: no volume of the claim {claim!r} is mounted at {folder}",
            "Run it in a cluster, where the operator mounts the claim; on this machine use file://.",
        )
    return f"{folder}/{path}"
