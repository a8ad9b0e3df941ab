"""Whole runs of backend keras as processes on 8 virtual devices: what they leave, and how they resume."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from gemmatune_api import memory_mesh
from gemmatune_api.names import ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.models import fetch
from tests.keras.conftest import MakeConfig
from tests.support.soak import SOAK
from tests.support.trainerhost import TrainerHost, TrainerProcess


def output(config: RunConfig) -> Path:
    return Path(config.output.uri.removeprefix("file://"))


def run(host: TrainerHost, config: RunConfig, folder: Path) -> TrainerProcess:
    prepared = host.run("prepare", config, folder / "prepare")
    assert prepared.poll() == ExitCode.DONE, prepared.log()
    trained = host.run("train", config, folder / "train")
    assert trained.poll() == ExitCode.DONE, trained.log()
    return trained


def test_lora_leaves_a_verified_peft_adapter(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = make_config(max_steps=4)
    done = run(trainer_host, config, tmp_path)
    manifest = json.loads((output(config) / "manifest.json").read_text())
    tensors: dict[str, Any] = load_file(output(config) / "adapter" / "adapter_model.safetensors")
    assert manifest["steps"] == 4
    assert manifest["verified"]["delta"] > 0
    assert manifest["verified"]["largestDifference"] < 1e-4
    check_tally(config, done, manifest["compiled"])
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    assert tensors[key].shape == (64, 16), "four heads of rank 4 share one B"
    blocks = tensors[key].reshape(4, 16, 4, 4)
    assert all((blocks[0, :, 0] == blocks[head, :, head]).all() for head in range(4))
    assert not np.any(blocks[0, :, 1]), "block-diagonal"
    assert {event["mesh"] for event in done.events("placed")} == {"data 2 x model 4"}
    check_placed(config, done, WEIGHTS | {f"{BLOCK}/attention/query/lora_kernel_a": WHOLE}, moments=0)


def check_tally(config: RunConfig, done: TrainerProcess, compiled: dict[str, Any]) -> None:
    """Log, manifest and report say what was compiled, and how much of the fixed shape was padding."""
    (logged,) = done.events("compiled")
    (shape,) = done.events("batches")
    computed = shape["sequences"] * shape["passes"] * shape["length"] * 4
    data = json.loads((output(config) / "manifest.json").read_text())["data"]
    assert (compiled["compilations"], compiled["afterStep2"]) == (logged["compilations"], 0)
    assert 1 <= compiled["compilations"] <= 20, "pass, update and what is small, but for what the cache had"
    assert compiled["seconds"] > 0
    mean = data["tokens"] / data["rows"]
    assert compiled["padding"] == pytest.approx(1 - 16 * mean / computed, abs=0.25), "four steps of four rows"
    assert 0 < compiled["padding"] < 1
    page = (output(config) / "report" / "report.html").read_text()
    (share,) = re.findall(r"([0-9.]+)% of the computed tokens", page)
    assert float(share) == pytest.approx(100 * compiled["padding"], abs=0.1)


BLOCK = "decoder_block_*"
WHOLE = "every device has it"
WEIGHTS = {
    # Gemma 3 with two layers, four heads, two of keys and 553 words; the axes of a mesh 2 x 4.
    "token_embedding/embeddings": "-, data",
    f"{BLOCK}/attention/query/kernel": "model, data, -",
    f"{BLOCK}/attention/key/kernel": "-, data, -",
    f"{BLOCK}/attention/value/kernel": "-, data, -",
    f"{BLOCK}/attention/attention_output/kernel": "model, -, data",
    f"{BLOCK}/ffw_gating/kernel": "data, model",
    f"{BLOCK}/ffw_gating_2/kernel": "data, model",
    f"{BLOCK}/ffw_linear/kernel": "model, data",
    "final_normalization/scale": WHOLE,
}
DEVICES = {"data": 2, "model": 4, "-": 1}


def check_placed(config: RunConfig, done: TrainerProcess, wanted: dict[str, str], moments: int) -> None:
    """Log and report say the same of where every kind of weight lies, and of the moments that belong to it."""
    logged = {(event["what"], event["variable"]): event["placed"] for event in done.events("sharding")}
    page = (output(config) / "report" / "report.html").read_text().partition("<h2>Mesh</h2>")[2]
    cell = "<td>([^<]+)</td>"
    rows = re.findall(f"<tr>{cell * 5}</tr>", page)
    table = {re.sub(r" \(\d+ times\)", "", row[0]): row[1:] for row in rows}
    assert {name for _, name in logged} == table.keys(), "everything that was checked is in the report"
    for end, axes in wanted.items():
        (name,) = [name for what, name in logged if what == "weights" and name.endswith(end)]
        parts = 1 if axes == WHOLE else math.prod(DEVICES[axis] for axis in axes.split(", "))
        whole, held = (int(text.replace(",", "")) for text in table[name][2:])
        assert (logged["weights", name], table[name][1], held * parts) == (axes, axes, whole), name
    planned = memory_mesh.divided(fetch(config.model, weights=True).model, (2, 4))
    (placed,) = [event for event in done.events("placed") if event["what"] == "weights"]
    adapter = sum(
        4 * math.prod(map(int, event["shape"].split("x"))) * event["count"]
        for event in done.events("sharding")
        if event["what"] == "weights" and "lora" in event["variable"]
    )
    assert placed["bytes_per_device"] == 4 * planned + adapter, "as the plan counts them"
    found = sorted(axes for (what, _), axes in logged.items() if what == "optimizer" and axes != WHOLE)
    assert found == sorted(axes for axes in wanted.values() if axes != WHOLE for _ in range(moments))


STEPS, RESUMED_AT = 5, 2
"""The attempt that resumes has a step more than those that may compile."""


def left(config: RunConfig, result: str) -> dict[str, bytes]:
    """What a run that is done has written of its numbers: its result, and weights and moments after the last step."""
    folders = (output(config) / result, output(config) / f"checkpoints/step-{STEPS:08d}")
    paths = [path for folder in folders for path in folder.glob("*.safetensors")]
    found = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}
    assert len(found) >= 3
    return found


def resumed(host: TrainerHost, config: RunConfig, folder: Path, result: str) -> TrainerProcess:
    """An attempt that finds the checkpoint of step RESUMED_AT as the newest of a run that was done."""
    out = output(config)
    later = [path for path in (out / "checkpoints").iterdir() if path.name > f"step-{RESUMED_AT:08d}"]
    assert len(later) == 2
    for gone in (*later, out / result):
        shutil.rmtree(gone)
    (out / "manifest.json").unlink()
    again = host.run("train", config.model_copy(update={"attempt": 2}), folder / "again")
    assert again.poll() == ExitCode.DONE, again.log()
    assert again.events("training")[0]["from_step"] == RESUMED_AT
    return again


CASES: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "full in bf16": {"kind": "full", "learning_rate": 1e-3, "precision": "bf16"},
}
if SOAK:
    CASES["lora in bf16"] = {"kind": "lora", "precision": "bf16"}
    CASES["full"] = {"kind": "full", "learning_rate": 1e-3}


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes_to_the_same_bits(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, case: str
) -> None:
    """Result, weights and moments, and nothing is compiled after the second step of the attempt that resumes."""
    full = CASES[case]["kind"] == "full"
    config = make_config(max_steps=STEPS, every_steps=2, keep=3, **CASES[case])
    result = "model" if full else "adapter"
    done = run(trainer_host, config, tmp_path)
    first = left(config, result)
    again = resumed(trainer_host, config, tmp_path, result)
    assert left(config, result) == first
    (compiled,) = again.events("compiled")
    assert compiled["compilations"] > 0
    assert json.loads((output(config) / "manifest.json").read_text())["compiled"]["afterStep2"] == 0
    (moments,) = [event for event in done.events("placed") if event["what"] == "optimizer"]
    share = moments["bytes_per_device"] / moments["bytes"]
    assert share < 0.3 if full else share == 1, "moments lie as their weights do; an adapter's everywhere"
    if full:  # also where it computes in bf16, weights and moments are fp32
        check_placed(config, done, WEIGHTS, moments=2)
        kinds = kinds_of(output(config) / result / "model.safetensors")
        assert kinds == {"BF16" if config.training.precision == "bf16" else "F32"}


def kinds_of(file: Path) -> set[str]:
    """Types of a file's numbers."""
    with safe_open(file, "numpy") as found:
        names = found.keys()
        return {found.get_slice(name).get_dtype() for name in names}
