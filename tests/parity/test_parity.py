"""One run trained by torch, xla and keras: the same rows, adapters that plain PEFT loads, and the same held-out loss.
Then each goes on from the others' checkpoints, as a run does that moves.

Each backend is the real trainer in its own environment, xla and keras on four virtual devices. The three outputs begin
as copies of one preparation. What they leave is judged by plain transformers and PEFT, row by row without padding.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bench import about
from bench.held_out import loss
from bench.trainer_rows import Row
from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG
from gemmatune_api.runconfig import RunConfig, RunMesh
from gemmatune_api.spec import Backend
from gemmatune_cli.local.environments import python_of
from gemmatune_trainer.data import prepared
from gemmatune_trainer.storage import open_storage
from tests.keras.conftest import device_environment
from tests.support.soak import SOAK, only_in_soak
from tests.support.tinymodels import write_model
from tests.trainer.conftest import run_config, write_quotes
from tests.xla.devices import virtual

DEVICES, STEPS, SAVED = 4, 150, 100
BACKENDS: dict[Backend, dict[str, str]] = {
    "torch": {"OMP_NUM_THREADS": "1"},
    "xla": virtual(DEVICES),
    "keras": device_environment(DEVICES),
}
WITHIN = 0.02
"""How far apart the held-out losses may be, relative."""
SAME = 1e-4
"""The same for what is the same computation: fp32, summed in another order."""


def config_of(backend: Backend, model: Path, folder: Path, steps: int = STEPS, **changes: Any) -> RunConfig:
    """The same run for each of them, saved after two thirds: a quarter of 96 rows is held out."""
    data, out = write_quotes(folder / "quotes.jsonl", 400), folder / backend
    given = {"max_steps": steps, "every_steps": steps * 2 // 3, "global_batch_size": 8, "rank": 8, **changes}
    found = run_config(model, data, out, prompts=[], eval_fraction=0.25, **given)
    mesh = None if backend == "torch" else RunMesh(data=2, model=2)
    return found.model_copy(update={"backend": backend, "mesh": mesh})


def output(config: RunConfig) -> Path:
    return Path(config.output.uri.removeprefix("file://"))


def start(role: str, config: RunConfig, folder: Path) -> subprocess.Popen[str]:
    """The trainer as a process of the backend's environment."""
    python = python_of(config.backend)
    assert python is not None, f"make setup-{config.backend} installs it"
    environment = {
        **os.environ,
        **BACKENDS[config.backend],
        ENV_RUN: config.to_env(),
        ENV_CACHE: str(folder / "cache" / config.backend),
        ENV_TERMINATION_LOG: str(folder / f"{config.backend}-termination"),
        ENV_STATUS_FILE: str(folder / f"{config.backend}-status"),
    }
    command = [str(python), "-m", "gemmatune_trainer", role]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate()
    assert process.returncode == 0, told[-4000:]


def history(config: RunConfig) -> tuple[list[float], list[float]]:
    """Losses of the steps, and of the evaluations of base and result, as the run's last checkpoint has them."""
    found = json.loads(max(output(config).glob("checkpoints/*/history.json")).read_text())
    return [point["loss"] for point in found["points"]], [item["loss"] for item in found["evaluations"]]


def rates(config: RunConfig) -> list[float]:
    """Learning rates of the steps, from the same file."""
    found = json.loads(max(output(config).glob("checkpoints/*/history.json")).read_text())
    return [point["learning_rate"] for point in found["points"]]


def held_out(config: RunConfig, cache: Path) -> list[Row]:
    """The rows that the preparation has kept for evaluation."""
    storage = open_storage(config.output.uri)
    (folder,) = output(config).glob("prepared/*")
    found = prepared.load(storage, config.output.uri, folder.name, cache).evaluation
    assert found is not None
    pairs = map(found.row, range(found.rows))
    return [([int(one) for one in ids], [int(one) for one in labels]) for ids, labels in pairs]


@dataclass(frozen=True)
class Trained:
    """The run by each backend, in folders of their names below `folder`."""

    folder: Path
    model: Path
    configs: dict[Backend, RunConfig]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("parity")
    model = write_model(folder / "model", "3")
    configs = {backend: config_of(backend, model, folder) for backend in BACKENDS}
    ended(start("prepare", configs["torch"], folder))
    for backend in ("xla", "keras"):
        shutil.copytree(folder / "torch", folder / backend)
    for process in [start("train", config, folder) for config in configs.values()]:
        ended(process)
    return Trained(folder, model, configs)


def test_three_backends_agree(trained: Trained) -> None:
    configs, folder = trained.configs, trained.folder
    base = AutoModelForCausalLM.from_pretrained(trained.model, dtype=torch.float32).eval()
    rows = held_out(configs["torch"], folder / "rows")
    untrained, found = loss(base, rows), {}
    for backend, config in configs.items():
        tuned = PeftModel.from_pretrained(base, folder / backend / "adapter").eval()
        found[backend] = loss(tuned, rows)
        base = tuned.unload()
        steps, (before, _, after) = history(config)
        assert before == pytest.approx(untrained, rel=SAME), backend
        assert after == pytest.approx(found[backend], rel=10 * SAME), backend
        assert len(steps) == STEPS
        assert rates(config) == pytest.approx(rates(configs["torch"]), rel=1e-9), backend
    if path := os.environ.get("PARITY_RESULTS"):
        about.write({"results": results(untrained, found)}, Path(path))
    assert found["torch"] < 0.7 * untrained
    for backend in ("xla", "keras"):
        assert found[backend] == pytest.approx(found["torch"], rel=WITHIN), backend
    # torch and xla also begin with the same adapter.
    first, second = history(configs["torch"])[0], history(configs["xla"])[0]
    assert first[:20] == pytest.approx(second[:20], rel=SAME)


def results(untrained: float, found: Mapping[Backend, float]) -> list[dict[str, object]]:
    """What docs/performance.md shows of it."""
    rows = [(backend, value, value / found["torch"] - 1) for backend, value in found.items()]
    base: list[tuple[str, float, float | None]] = [("none: the base", untrained, None)]
    return [{"adapter": name, "held_out": value, "apart": apart} for name, value, apart in [*base, *rows]]


MOVES: list[tuple[Backend, Backend]] = [("torch", "xla"), ("torch", "keras")]
if SOAK:  # the first and the third of these are, from what a release has left, in tests/trainer/test_moves.py too
    MOVES += [("xla", "torch"), ("xla", "keras"), ("keras", "torch"), ("keras", "xla")]


def moved(source: RunConfig, target: RunConfig, folder: Path) -> RunConfig:
    """A finished run goes on from the first of its two checkpoints, as the run of `target` does it: its configuration.

    All that it leaves is below `folder`.
    """
    out = source.output.model_copy(update={"uri": (folder / "out").as_uri()})
    config = target.model_copy(update={"attempt": 2, "output": out})
    shutil.copytree(output(source), output(config))
    for later in (output(config) / "manifest.json", max(output(config).glob("checkpoints/*/manifest.json"))):
        later.unlink()
    ended(start("train", config, folder))
    return config


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_a_run_moves_to_another_backend(trained: Trained, tmp_path: Path, source: Backend, target: Backend) -> None:
    """From step SAVED on it does what the undisturbed run does: the same but for rounding between torch and xla."""
    config = moved(trained.configs[source], trained.configs[target], tmp_path)

    (undisturbed, there), (steps, here) = history(trained.configs[source]), history(config)
    assert len(steps) == STEPS
    assert steps[:SAVED] == undisturbed[:SAVED], "the history moves too"
    assert rates(config) == pytest.approx(rates(trained.configs[source]), rel=1e-9)
    said = json.loads((tmp_path / f"{target}-termination").read_text())["message"]
    if "keras" in (source, target):
        assert f"The optimizer began anew after step {SAVED}" in said
        assert steps[SAVED] == pytest.approx(undisturbed[SAVED], rel=10 * SAME), "before the first step of the new one"
        assert here[-1] == pytest.approx(there[-1], rel=0.05)
    else:
        assert "anew" not in said
        assert steps[SAVED : SAVED + 20] == pytest.approx(undisturbed[SAVED : SAVED + 20], rel=SAME)
        assert here[-1] == pytest.approx(there[-1], rel=10 * SAME)
    base = AutoModelForCausalLM.from_pretrained(trained.model, dtype=torch.float32).eval()
    tuned = PeftModel.from_pretrained(base, output(config) / "adapter").eval()
    assert loss(tuned, held_out(config, tmp_path / "rows")) == pytest.approx(here[-1], rel=10 * SAME)


@only_in_soak
@pytest.mark.parametrize(("source", "target"), list(permutations(BACKENDS, 2)))
def test_full_tuning_moves_to_another_backend(tmp_path: Path, source: Backend, target: Backend) -> None:
    """From the checkpoint on it does what the undisturbed run does; its result is the model that it has measured.

    To and from keras the optimizer begins anew: there only the first loss is that of the undisturbed run.
    """
    model, steps, saved = write_model(tmp_path / "model", "3"), 30, 20
    changes = {"kind": "full", "learning_rate": 1e-3}
    first, then = (config_of(backend, model, tmp_path, steps, **changes) for backend in (source, target))
    for role in ("prepare", "train"):
        ended(start(role, first, tmp_path))
    config = moved(first, then, tmp_path)
    (undisturbed, there), (losses, here) = history(first), history(config)
    assert len(losses) == steps
    assert losses[:saved] == undisturbed[:saved], "the history moves too"
    assert rates(config) == pytest.approx(rates(first), rel=1e-9)
    if "keras" in (source, target):
        assert losses[saved] == pytest.approx(undisturbed[saved], rel=SAME)
        assert here[-1] == pytest.approx(there[-1], rel=0.05)
    else:
        assert losses[saved:] == pytest.approx(undisturbed[saved:], rel=SAME)
        assert here[-1] == pytest.approx(there[-1], rel=10 * SAME)
    assert undisturbed[-1] < 0.95 * undisturbed[0]
    tuned = AutoModelForCausalLM.from_pretrained(output(config) / "model", dtype=torch.float32).eval()
    assert loss(tuned, held_out(config, tmp_path / "rows")) == pytest.approx(here[-1], rel=10 * SAME)
