"""Runs that go on from the state of another optimizer or backend: what they keep, in the torch backend's process."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from safetensors.numpy import load, load_file

from gemmatune_api.names import ENV_RUN, ExitCode
from gemmatune_api.runconfig import RunConfig
from tests.data.release import BUCKET, OUTPUT, RESULT, STEP, Release, releases
from tests.support.fakegcs import FakeGcs
from tests.support.soak import SOAK
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.support.upgrade import goes_on
from tests.trainer.conftest import ListedRows
from tests.trainer.test_torch_backend import LENGTHS, Watcher, make_backend

MakeConfig = Callable[..., RunConfig]
SAVED, STEPS = 3, 6
RANK = 64
"""Large enough for weights of 4,096 numbers: smaller ones bitsandbytes keeps in 32 bits."""


def trained(config: RunConfig, folder: Path) -> list[float]:
    """Losses of an undisturbed run, which leaves its state of step SAVED."""
    backend = make_backend(config)
    save = Watcher(lambda step: backend.snapshot()(folder) if step == SAVED else None)
    backend.train(ListedRows(LENGTHS), len(LENGTHS), STEPS, None, save)
    return [step.loss for step in save.steps]


def resumed(config: RunConfig, folder: Path) -> tuple[list[float], Any]:
    """Losses of the steps after SAVED, and the state of the optimizer right after it was loaded."""
    backend = make_backend(config)
    loaded: list[Any] = []

    class Look(Watcher):
        def micro_batch(self) -> None:
            if not self.micro_batches:
                loaded.append(copy.deepcopy(backend._trainer.optimizer.state_dict()["state"]))  # type: ignore[union-attr]
            super().micro_batch()

    watch = Look()
    backend.train(ListedRows(LENGTHS), len(LENGTHS), STEPS, folder, watch)
    assert [step.number for step in watch.steps] == [*range(SAVED + 1, STEPS + 1)]
    return [step.loss for step in watch.steps], loaded[0]


def saved_state(folder: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return found


def quantised(held: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = held["__bnb_optimizer_quant_state__"]
    return found


@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", *(["adamw_bnb_8bit", "paged_adamw_32bit"] if SOAK else [])])
def test_a_state_of_bitsandbytes_resumes_bit_equal(make_config: MakeConfig, tmp_path: Path, optimizer: str) -> None:
    config = make_config(optimizer=optimizer, rank=RANK)
    losses = trained(config, tmp_path)
    assert any(quantised(held)["state1"].dtype == torch.uint8 for held in saved_state(tmp_path).values()) == (
        optimizer.endswith("8bit")
    )
    assert resumed(config, tmp_path)[0] == losses[SAVED:]


def test_a_run_of_an_8bit_optimizer_moves_to_one_of_32_bits(make_config: MakeConfig, tmp_path: Path) -> None:
    """What a GPU's default leaves goes on elsewhere: moments are those that were stored, in fp32."""
    losses = trained(make_config(optimizer="paged_adamw_8bit", rank=RANK), tmp_path)
    found, loaded = resumed(make_config(optimizer="adamw_torch", rank=RANK), tmp_path)
    assert found[0] == losses[SAVED]
    assert found == pytest.approx(losses[SAVED:], rel=1e-2)
    bits = set()
    for number, held in saved_state(tmp_path).items():
        inner = quantised(held)
        assert float(loaded[number]["step"]) == SAVED
        for key, name in (("1", "exp_avg"), ("2", "exp_avg_sq")):
            value = inner[f"state{key}"]
            if value.dtype == torch.uint8:
                code, constants = inner[f"qmap{key}"], inner[f"absmax{key}"]
                value = functional.dequantize_blockwise(value, absmax=constants, code=code, blocksize=256)
            bits.add(inner[f"state{key}"].dtype)
            assert torch.equal(loaded[number][name], value)
    assert bits == {torch.uint8, torch.float32}, "both kinds of weights are there"


@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_run_moves_to_an_optimizer_of_bitsandbytes(make_config: MakeConfig, tmp_path: Path, optimizer: str) -> None:
    losses = trained(make_config(optimizer="adamw_torch", rank=RANK), tmp_path)
    found, loaded = resumed(make_config(optimizer=optimizer, rank=RANK), tmp_path)
    assert found[0] == losses[SAVED]
    assert found == pytest.approx(losses[SAVED:], rel=1e-2 if optimizer.endswith("8bit") else 1e-5)
    for number, held in saved_state(tmp_path).items():
        inner = quantised(loaded[number])
        assert loaded[number]["step"] == SAVED
        eight = optimizer.endswith("8bit") and held["exp_avg"].numel() >= 4096
        for key, name in (("1", "exp_avg"), ("2", "exp_avg_sq")):
            value = inner[f"state{key}"]
            assert value.dtype == (torch.uint8 if eight else torch.float32)
            if eight:
                code, constants = inner[f"qmap{key}"], inner[f"absmax{key}"]
                value = functional.dequantize_blockwise(value, absmax=constants, code=code, blocksize=256)
            apart = (value - held[name]).abs().max()
            assert apart <= (0.02 * held[name].abs().max() if eight else 0)


@pytest.mark.parametrize("former", releases("xla"), ids=lambda release: release.folder.parent.name)
def test_a_run_that_xla_began_goes_on_with_torch(former: Release, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """The state that a release's xla stored, whose schedule has one group: weights end as xla's own did."""

    def start(env: dict[str, str], folder: Path) -> TrainerProcess:
        config = {**json.loads(env[ENV_RUN]), "backend": "torch"}
        del config["mesh"]
        run = trainer_host.run("train", json.dumps(config), folder, {**env, ENV_RUN: json.dumps(config)})
        assert run.poll() == ExitCode.DONE, run.log()
        return run

    goes_on(former, "then", start, tmp_path)


@pytest.mark.parametrize("former", releases("keras"), ids=lambda release: release.folder.parent.name)
def test_a_run_that_keras_began_goes_on_with_torch(former: Release, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """Its adapter in PEFT's form, its step and its rows; the optimizer begins anew, which the message says."""
    with FakeGcs() as gcs:
        former.upload(gcs)
        env = former.environment("t2", gcs, tmp_path / "cache")
        config = {**json.loads(env[ENV_RUN]), "backend": "torch"}
        del config["mesh"]
        run = trainer_host.run("train", json.dumps(config), tmp_path, {**env, ENV_RUN: json.dumps(config)})
        assert run.poll() == ExitCode.DONE, run.log()
        manifest = json.loads(gcs.read(BUCKET, OUTPUT + "manifest.json"))
        ended = load(gcs.read(BUCKET, OUTPUT + RESULT))
    assert run.events("training")[0]["from_step"] == STEP
    assert "The optimizer began anew after step 4: the checkpoint was written by backend keras" in run.message.message
    expected = load_file(former.folder / "result" / Path(RESULT).name)
    assert {name: value.shape for name, value in ended.items()} == {name: each.shape for name, each in expected.items()}
    progress = run.status["progress"]
    losses = dict(zip(map(str, progress["historySteps"]), progress["historyLoss"], strict=True))
    wanted = former.facts["losses"]
    assert losses["5"] == pytest.approx(wanted["5"], abs=1e-3), "the step before which the weights are the same"
    assert losses["8"] == pytest.approx(wanted["8"], rel=0.1)
    assert manifest["method"]["servedRank"] == 4, "two heads share a B of rank 2"
