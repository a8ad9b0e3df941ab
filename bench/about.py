"""What every benchmark does alike: it finds the model, and says on what, when and of which commit it measured."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def with_model(parser: argparse.ArgumentParser) -> None:
    """Adds --model."""
    parser.add_argument("--model", type=Path, help="folder of the Gemma 3 270M; default: the demo's")


def model_of(arguments: argparse.Namespace) -> Path:
    """The folder that --model names, else the demo's, converted where it is not yet."""
    given: Path | None = arguments.model
    if given is not None:
        return given
    from gemmatune_cli.local.model import gemma_3_270m

    return gemma_3_270m(print)


def here_and_now() -> dict[str, str]:
    """Commit, date and machine."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def write(found: Mapping[str, Any], output: Path) -> None:
    """Writes the results with commit, date and machine."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**here_and_now(), **found}, indent=1) + "\n")
