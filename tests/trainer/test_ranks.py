"""Two processes on gloo train what one trains: a copy on each, or the model divided between them."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemmatune_api.names import ExitCode, Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.states import load_random, random_file
from gemmatune_trainer.launcher import free_port
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.support.wait import wait_for
from tests.trainer.test_run import at, attempt, output, prepared, steps_done

MakeConfig = Callable[..., RunConfig]


def start(host: TrainerHost, config: RunConfig, folder: Path, size: int = 2) -> list[TrainerProcess]:
    """The processes of an attempt, as the launcher starts them; rank 0 first."""
    if size == 1:
        return [host.start("train", config, folder / "0")]
    meet = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    told = ({"RANK": str(rank), "LOCAL_RANK": str(rank), **meet} for rank in range(size))
    return [host.start("train", config, folder / str(rank), env) for rank, env in enumerate(told)]


def run(host: TrainerHost, config: RunConfig, folder: Path, size: int = 2, code: int = ExitCode.DONE) -> TrainerProcess:
    """An attempt to its end; its rank 0."""
    ranks = start(host, config, folder, size)
    for rank in ranks:
        assert rank.wait() == code, "\n".join(each.log()[-6000:] for each in ranks)
    return ranks[0]


def losses(process: TrainerProcess) -> list[float]:
    """Loss of every step, as exactly as the history has it."""
    return list(process.status["progress"]["historyLoss"])


def result(config: RunConfig) -> dict[str, torch.Tensor]:
    kind = "model" if config.method.kind == "full" else "adapter"
    (file,) = (output(config) / kind).glob("*.safetensors")
    return load_file(file)


def history(config: RunConfig) -> list[float]:
    """Losses of all steps, unrounded, from the last checkpoint."""
    newest = max((output(config) / "checkpoints").iterdir())
    return [point["loss"] for point in json.loads((newest / "history.json").read_text())["points"]]


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


WAYS: dict[str, dict[str, Any]] = {
    "lora copied": {"kind": "lora"},
    "lora divided": {"kind": "lora", "sharded": True},
    "full divided": {"kind": "full", "sharded": True, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_what_one_does(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, way: str
) -> None:
    """The same losses within 1e-5, and the same result; resumed by two it is bit-equal, by one the same again."""
    config = make_config(**{"max_steps": 6, "every_steps": 2, "keep": 5, "micro_batch_size": 1, **WAYS[way]})
    one, two = (prepared(trainer_host, at(config, tmp_path / name), tmp_path / f"p{name}") for name in ("one", "two"))
    alone = run(trainer_host, one, tmp_path / "alone", size=1)
    both = run(trainer_host, two, tmp_path / "both")
    assert len(history(one)) == 6
    for single, double in zip(history(one), history(two), strict=True):
        assert double == pytest.approx(single, rel=1e-5)
    assert largest(result(one), result(two)) < 1e-4
    assert both.status["samples"] == alone.status["samples"]
    assert not (tmp_path / "both" / "1" / "status.json").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "lora", "dropout": 0.1},
        {"kind": "full", "sharded": True, "learning_rate": 1e-3},
    ],
    ids=["lora copied", "full divided"],
)
def test_two_processes_stop_together_and_resume(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """SIGTERM to rank 1 alone: both end with 30 after one checkpoint. Two resume bit-equal; one goes on, too."""
    config = make_config(**{"max_steps": 40, "every_steps": 1000, "micro_batch_size": 1, **settings})
    undisturbed = prepared(trainer_host, at(config, tmp_path / "undisturbed"), tmp_path / "u")
    run(trainer_host, undisturbed, tmp_path / "whole")
    prepared(trainer_host, config, tmp_path / "p")
    ranks = start(trainer_host, config, tmp_path / "first")
    wait_for(lambda: steps_done(ranks[0]) >= 3, "three steps", seconds=180, detail=ranks[0].log)
    ranks[1].signal(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [ExitCode.INTERRUPTED] * 2, ranks[0].log() + ranks[1].log()
    reached = ranks[0].message.step
    assert reached is not None
    assert ranks[0].message.reason == Reason.INTERRUPTED
    saved = output(config) / "checkpoints" / f"step-{reached:08d}"
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= {path.name for path in saved.iterdir()}
    one, other = (load_random(saved / random_file(rank, 2)) for rank in range(2))
    # The places differ in any case, since the rows do; the seeds are the first 8 bytes, and that of Python's numbers.
    assert not torch.equal(one["cpu"][:8], other["cpu"][:8]), "each rank drops out what it likes"
    assert one["python"] != other["python"]
    alone = at(config, tmp_path / "alone")
    shutil.copytree(output(config), output(alone))
    resumed = run(trainer_host, attempt(config, 2), tmp_path / "second")
    assert resumed.events("training")[0]["from_step"] == reached
    assert largest(result(undisturbed), result(config)) == 0
    assert history(undisturbed) == history(config)
    run(trainer_host, attempt(alone, 2), tmp_path / "single", size=1)
    tolerance = 0.05 if "dropout" in settings else 1e-4
    assert history(alone) == pytest.approx(history(config), rel=tolerance)


def test_a_signal_to_another_rank_leaves_no_half_answer(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """SIGTERM to rank 1 while all answer the prompts: the next attempt would find cut answers, and keep them."""
    prompts = [f"Quote: {number}" for number in range(20)]
    config = make_config(sharded=True, prompts=prompts, max_new_tokens=64)
    prepared(trainer_host, config, tmp_path / "p")
    ranks = start(trainer_host, config, tmp_path / "first")
    wait_for(lambda: ranks[0].events("sample"), "an answer", seconds=180, detail=ranks[0].log)
    ranks[1].signal(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [ExitCode.INTERRUPTED] * 2, ranks[0].log() + ranks[1].log()
    assert "samples before training" in ranks[0].message.message
    assert not (output(config) / "samples" / "before.json").exists()


def test_one_process_hands_over_to_two(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """With the model divided: the optimizer's state of one process is dealt out to both."""
    config = make_config(max_steps=12, every_steps=1000, micro_batch_size=1, sharded=True)
    undisturbed = prepared(trainer_host, at(config, tmp_path / "undisturbed"), tmp_path / "u")
    run(trainer_host, undisturbed, tmp_path / "whole", size=1)
    prepared(trainer_host, config, tmp_path / "p")
    first = trainer_host.start("train", config, tmp_path / "first")
    wait_for(lambda: steps_done(first) >= 3, "three steps", seconds=180, detail=first.log)
    first.signal(signal.SIGTERM)
    if first.wait() == ExitCode.INTERRUPTED:
        run(trainer_host, attempt(config, 2), tmp_path / "second")
    assert history(config) == pytest.approx(history(undisturbed), rel=1e-5)
    assert largest(result(config), result(undisturbed)) < 1e-4


def test_the_loss_of_both_diverges(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    config = prepared(trainer_host, make_config(learning_rate=1e30, max_steps=8), tmp_path / "p")
    ranks = start(trainer_host, config, tmp_path)
    assert [rank.wait() for rank in ranks] == [ExitCode.LOSS_DIVERGED] * 2, ranks[0].log() + ranks[1].log()
    assert ranks[0].message.reason == Reason.LOSS_DIVERGED


def test_bf16_divided(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """A 16-bit base with fp32 adapters, and fp32 masters that are gathered in 16 bit, evaluated on the way."""
    for kind in ("lora", "full"):
        config = make_config(kind=kind, sharded=True, precision="bf16", max_steps=2, eval_fraction=0.25)
        config = prepared(trainer_host, at(config, tmp_path / kind), tmp_path / f"p-{kind}")
        assert run(trainer_host, config, tmp_path / f"run-{kind}").status["progress"]["evalLoss"] > 0
