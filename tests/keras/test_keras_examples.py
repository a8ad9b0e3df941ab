"""The example of backend keras in miniature, by `gft run`: mesh, method and precision as written, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from gemmatune_api.names import ENV_CACHE
from tests.trainer.conftest import write_quotes

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "quotes-keras-mesh.yaml"
STEPS = 2


def test_the_model_divided_over_a_mesh(tiny_model: Callable[[str], Path], cache: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    spec = document["spec"]
    rows = [json.loads(line) for line in write_quotes(tmp_path / "quotes.jsonl").read_text().splitlines()]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"quote": row["text"], "author": row["from"]}) + "\n" for row in rows))
    spec["model"]["uri"], spec["dataset"]["uri"] = tiny_model("2").as_uri(), data.as_uri()
    spec["output"]["uri"] = (tmp_path / "out").as_uri()
    spec["training"] |= {"maxSteps": STEPS, "warmupSteps": 1}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(document))
    with_cache = {**os.environ, ENV_CACHE: str(cache)}
    command = [sys.executable, "-m", "gemmatune_cli", "run", str(file)]
    done = subprocess.run(command, env=with_cache, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    # Two layers: queries have four heads, values two; hidden size 64, heads of 16.
    trained = 2 * 4 * ((4 * 64 + 16) + (2 * 64 + 16))
    exported = 2 * 4 * (4 * (64 + 64) + 2 * (64 + 32))
    assert manifest["verified"]["trainedParameters"] == trained
    assert manifest["verified"]["exportedParameters"] == exported
    assert manifest["steps"] == STEPS
