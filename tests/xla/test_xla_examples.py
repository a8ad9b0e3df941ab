"""The examples of backend xla in miniature, by `gft run`: method, mesh and optimizer as written, on a tiny model."""

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
from safetensors import safe_open

from tests.trainer.conftest import write_quotes

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = ["quotes-tpu", "quotes-xla-mesh"]
STEPS = 2


def test_these_are_all() -> None:
    specs = {path.stem: yaml.safe_load(path.read_text())["spec"] for path in FOLDER.glob("*.yaml")}
    by_default = {name: "xla" if "tpu" in spec["accelerator"] else "torch" for name, spec in specs.items()}
    assert sorted(name for name in specs if specs[name].get("backend", by_default[name]) == "xla") == EXAMPLES


def miniature(spec: dict[str, Any], devices: int, model: Path, folder: Path) -> dict[str, Any]:
    """The spec with all that costs time, or needs a hub, a bucket or a TPU, made small."""
    quotes = [json.loads(line) for line in write_quotes(folder / "quotes.jsonl", 72).read_text().splitlines()]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"quote": row["text"], "author": row["from"]}) + "\n" for row in quotes))
    training = {name: value for name, value in spec["training"].items() if name != "epochs"}
    if devices == 1:
        del spec["mesh"]
    return {
        **spec,
        "backend": "xla",
        "model": {"uri": model.as_uri()},
        "dataset": {**spec["dataset"], "uri": rows.as_uri(), "maxLength": 64},
        "training": {**training, "maxSteps": STEPS, "warmupSteps": 1},
        "output": {"uri": (folder / "out").as_uri()},
        "accelerator": {"cpu": {"devices": devices}},
    }


@pytest.mark.parametrize(("name", "devices"), [(EXAMPLES[0], 4), (EXAMPLES[1], 4), (EXAMPLES[1], 1)])
def test_an_example_on_virtual_devices(
    name: str, devices: int, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    document["spec"] = miniature(document["spec"], devices, tiny_model("1"), tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(document))
    # The device is the run's affair: what the tests themselves have set does not reach it.
    own = {key: value for key, value in os.environ.items() if key not in ("PJRT_DEVICE", "CPU_NUM_DEVICES")}
    command = [sys.executable, "-m", "gemmatune_cli", "run", str(file)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["steps"] == STEPS
    assert manifest["verified"]["delta"] > 0
    settings = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 8
    with safe_open(tmp_path / "out" / "adapter" / "adapter_model.safetensors", framework="pt") as adapter:
        modules = {key.split(".")[-3] for key in adapter.keys()}  # noqa: SIM118 - no mapping
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
