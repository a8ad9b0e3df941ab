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
from safetensors.numpy import load_file

from gemmatune_api import memory_mesh
from gemmatune_api.names import ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.models import fetch
from tests.keras.conftest import MakeConfig
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
    assert 2 <= compiled["compilations"] <= 20, "the pass and the update, and small ones"
    assert compiled["seconds"] > 0
    mean = data["tokens"] / data["rows"]
    assert compiled["padding"] == pytest.approx(1 - 16 * mean / computed, abs=0.25), "four steps of four rows"
    assert 0 < compiled["padding"] < 1
    page = (output(config) / "report" / "report.html").read_text()
    assert f"{compiled['padding']:.1%} of the computed tokens" in page


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


def resumed(host: TrainerHost, config: RunConfig, folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of a run that is done, and that of an attempt which finds its checkpoint of step 2 as the newest."""
    out = output(config)
    name = {"adapter": "adapter_model", "model": "model"}[kind]
    first = load_file(out / kind / f"{name}.safetensors")
    for gone in (out / "checkpoints" / "step-00000004", out / kind):
        shutil.rmtree(gone)
    (out / "manifest.json").unlink()
    again = host.run("train", config.model_copy(update={"attempt": 2}), folder / "again")
    assert again.poll() == ExitCode.DONE, again.log()
    assert again.events("training")[0]["from_step"] == 2
    return first, load_file(out / kind / f"{name}.safetensors")


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_run_resumes_to_the_same_bits(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, kind: str
) -> None:
    changes: dict[str, Any] = {"kind": "full", "learning_rate": 1e-3} if kind == "model" else {}
    config = make_config(max_steps=4, every_steps=2, keep=2, **changes)
    done = run(trainer_host, config, tmp_path)
    first, second = resumed(trainer_host, config, tmp_path, kind)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    (moments,) = [event for event in done.events("placed") if event["what"] == "optimizer"]
    share = moments["bytes_per_device"] / moments["bytes"]
    assert share < 0.3 if kind == "model" else share == 1, "moments lie as their weights do; an adapter's everywhere"
    if kind == "model":
        check_placed(config, done, WEIGHTS, moments=2)
