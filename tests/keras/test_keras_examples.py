"""The examples of backend keras in miniature, by `gft run`: mesh, method and precision as written, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_api.names import ENV_CACHE
from tests.support.soak import SOAK
from tests.trainer.conftest import write_quotes

FOLDER = Path(__file__).resolve().parents[2] / "examples"
STEPS = 2


@pytest.mark.parametrize("name", ["gemma2-9b-keras-tpu", *(["quotes-keras-mesh"] if SOAK else [])])
def test_the_model_divided_over_a_mesh(
    tiny_model: Callable[[str], Path], cache: Path, tmp_path: Path, name: str
) -> None:
    """A slice of TPU chips becomes as many virtual devices; then the command of the example is for a laptop too."""
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    spec = document["spec"]
    rows = [json.loads(line) for line in write_quotes(tmp_path / "quotes.jsonl").read_text().splitlines()]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"quote": row["text"], "author": row["from"]}) + "\n" for row in rows))
    spec["model"], spec["dataset"]["uri"] = {"uri": tiny_model("2").as_uri()}, data.as_uri()
    spec["output"]["uri"] = (tmp_path / "out").as_uri()
    spec["training"] |= {"maxSteps": STEPS, "warmupSteps": 1}
    spec["training"].pop("epochs", None)
    mesh = spec["mesh"]
    spec["accelerator"] = {"cpu": {"devices": mesh["data"] * mesh["model"]}}
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
    report = (tmp_path / "out" / "report" / "report.html").read_text()
    assert f"Data {mesh['data']} x model {mesh['model']}." in report
    assert f"{trained:,}" in report
