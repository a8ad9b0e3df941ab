"""Backend keras trains, step by step, as plain PyTorch, transformers and PEFT do: 8 virtual devices, fp32.

A soak does it for every generation, and for an adapter in PEFT's form.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np
import pytest

from gemmatune_api.names import ENV_CACHE
from gemmatune_api.runconfig import RunConfig, RunMesh
from gemmatune_trainer.backends import keras_updates
from tests.keras.conftest import torch_python
from tests.keras.onehost import LENGTHS
from tests.keras.test_keras_parity import loaded
from tests.support.soak import SOAK
from tests.support.watcher import Watcher
from tests.trainer.conftest import ListedRows, run_config

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
TOLERANCE = 1e-5
"""Largest difference of losses and gradients' norms, relative."""
OF_ONE_FORM = ["o_proj", "gate_proj", "up_proj", "down_proj"]
"""The modules whose adapter is the same numbers in Keras's form and in PEFT's."""
WEIGHT, RATE, DECAY = [0.5, -0.5, 0.5, -0.5], 1e-3, 0.1
GRADIENTS = [[1e-7, -1e-6, 1e-5, 0.3], [3e-7, 1e-9, 1e-5, 0.0], [-1e-7, 1e-6, 1e-3, 0.2]] * 5

FULL: dict[str, Any] = {"kind": "full", "learning_rate": 5e-4, "schedule": "linear", "max_grad_norm": 1.7}
LORA: dict[str, Any] = {"target_modules": OF_ONE_FORM, "max_grad_norm": 0.6}
CASES: dict[str, dict[str, Any]] = {"full 2": {"generation": "2", **FULL}, "lora 3": {"generation": "3", **LORA}}
if SOAK:
    CASES |= {
        "full 1": {"generation": "1", **FULL, "schedule": "constant_with_warmup"},
        "full 3": {"generation": "3", **FULL, "schedule": "cosine", "gradient_checkpointing": True},
        "lora 1": {"generation": "1", **LORA, "max_grad_norm": 0.8},
        "lora 2": {"generation": "2", **LORA},
        "lora 3 in PEFT's form": {"generation": "3", **LORA, "target_modules": "all-linear", "max_grad_norm": 0.8},
    }


@dataclass(frozen=True, slots=True)
class Plain:
    """The loaded backends by case, and what plain libraries find from the same weights."""

    backends: dict[str, Any]
    steps: dict[str, list[tuple[float, float]]]
    updates: list[list[float]]


def config_of(case: dict[str, Any], model: Path, folder: Path) -> RunConfig:
    """A run with a decay, a warm-up and a norm at which some steps are clipped."""
    changes = {name: value for name, value in case.items() if name != "generation"}
    settings = {"global_batch_size": 8, "max_steps": STEPS, "warmup_steps": 3, "weight_decay": 3.0}
    found = run_config(model, folder / "rows.jsonl", folder / "out", **settings | changes)
    return found.model_copy(update={"backend": "keras", "mesh": RunMesh(data=2, model=4)})


@pytest.fixture(scope="module")
def plain(tiny_model: Callable[[str], Path], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    """Both begin an adapter with the same numbers: those of the backend's fresh one."""
    folder = tmp_path_factory.mktemp("plain")
    backends, runs = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_CACHE, str(cache))
        for name, case in CASES.items():
            config = config_of(case, tiny_model(case["generation"]), folder)
            backends[name], begun = loaded(config), folder / name
            if config.method.kind == "lora":
                backends[name].save_result(begun)
            if "PEFT" in name:
                backends[name].restore_weights(begun)
            start = str(begun) if begun.is_dir() else None
            runs.append({"config": config.model_dump(by_alias=True, mode="json"), "lengths": LENGTHS, "begun": start})
        update = {"weight": WEIGHT, "gradients": GRADIENTS, "learning_rate": RATE, "weight_decay": DECAY}
        found = answer({"runs": runs, "updates": update})
        yield Plain(backends, dict(zip(CASES, found["runs"], strict=True)), found["updates"])


def answer(asked: dict[str, Any]) -> Any:
    """What the torch environment says; with one thread, as several would wait for each other beside other tests."""
    done = subprocess.run(
        [str(torch_python()), "-m", "tests.support.plaintraining"],
        input=json.dumps(asked),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_those_of_plain_pytorch(plain: Plain, case: str) -> None:
    """Losses and norms of 20 steps, with decay, warm-up, schedule and clipping."""
    watcher = Watcher()
    plain.backends[case].train(ListedRows(LENGTHS), len(LENGTHS), STEPS, None, watcher)
    found = [(step.loss, step.gradient_norm) for step in watcher.steps]
    expected = plain.steps[case]
    assert found[-1][0] < 0.95 * found[0][0]
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    norms = [each for _, each in expected]
    assert min(norms) < CASES[case]["max_grad_norm"] < max(norms), "some steps are clipped, others are not"


def test_an_update_is_that_of_torch(plain: Plain) -> None:
    """Also in the first steps, and of weights whose gradients are as small as AdamW's epsilon."""
    weight = keras.Variable(np.array(WEIGHT, np.float32))
    training = config_of(CASES["full 2"], Path("/model"), Path("/run")).training
    made = keras_updates.optimizer(training.model_copy(update={"weight_decay": DECAY}))
    made.build([weight])
    made.learning_rate = RATE
    for gradient, expected in zip(GRADIENTS, plain.updates, strict=True):
        made.apply([jnp.asarray(gradient, jnp.float32)], [weight])
        moved, wanted = np.asarray(weight.value) - WEIGHT, np.array(expected) - WEIGHT
        np.testing.assert_allclose(moved, wanted, rtol=1e-5, atol=1e-7)  # which fp32 rounds away of 0.5
