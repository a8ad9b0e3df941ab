"""The examples of backend keras in miniature, by `gft run`: mesh, method and precision as written, on tiny models."""

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

from gemmatune_api import yamlio
from gemmatune_api.names import ENV_CACHE
from tests.support.pictures import write_shapes
from tests.support.soak import SOAK
from tests.support.tinymodels import write_paligemma
from tests.trainer.conftest import write_quotes

FOLDER = Path(__file__).resolve().parents[2] / "examples"
STEPS = 2


def run(document: dict[str, Any], cache: Path, folder: Path) -> dict[str, Any]:
    """The manifest of a run by `gft run`, with two steps into the folder."""
    spec = document["spec"]
    spec["output"]["uri"] = (folder / "out").as_uri()
    spec["training"] |= {"maxSteps": STEPS, "warmupSteps": 1}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(document))
    with_cache = {**os.environ, ENV_CACHE: str(cache)}
    command = [sys.executable, "-m", "gemmatune_cli", "run", str(file)]
    done = subprocess.run(command, env=with_cache, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    manifest: dict[str, Any] = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["steps"] == STEPS
    return manifest


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
    spec["training"].pop("epochs", None)
    mesh = spec["mesh"]
    spec["accelerator"] = {"cpu": {"devices": mesh["data"] * mesh["model"]}}
    manifest = run(document, cache, tmp_path)
    # Two layers: queries have four heads, values two; hidden size 64, heads of 16.
    trained = 2 * 4 * ((4 * 64 + 16) + (2 * 64 + 16))
    exported = 2 * 4 * (4 * (64 + 64) + 2 * (64 + 32))
    assert manifest["verified"]["trainedParameters"] == trained
    assert manifest["verified"]["exportedParameters"] == exported
    report = (tmp_path / "out" / "report" / "report.html").read_text()
    assert f"Data {mesh['data']} x model {mesh['model']}." in report
    assert f"{trained:,}" in report


@pytest.mark.parametrize("name", ["paligemma-keras", *(["paligemma-keras-tpu"] if SOAK else [])])
def test_a_paligemma_asked_about_images(cache: Path, tmp_path: Path, name: str) -> None:
    document: dict[str, Any] = next(iter(yamlio.load_all((FOLDER / f"{name}.yaml").read_text())))
    spec = document["spec"]
    if "tpu" in spec["accelerator"]:
        spec["accelerator"] = {"cpu": {"devices": 4}}
    rows = [json.loads(line) for line in write_shapes(tmp_path, 40, seed=3).read_text().splitlines()]
    data = tmp_path / "train.jsonl"
    asked = [{"file": row["file"], "question": "which colour", "answer": row["colour"]} for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in asked))
    spec["model"] = {"uri": write_paligemma(tmp_path / "model", "2").as_uri()}
    spec["dataset"]["uri"] = data.as_uri()
    del spec["training"]["epochs"]
    spec["samples"] |= {"fromEval": 1, "maxNewTokens": 3}
    manifest = run(document, cache, tmp_path)
    assert manifest["verified"]["delta"] > 0
    assert [sample["prompt"] for sample in manifest["samples"]] == ["answer en which colour"]
    settings = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert settings["target_modules"].startswith(".*language_model"), "not the vision tower's modules of the same names"
