"""Full tuning on tiny models: gradients of every weight, masters in fp32, saved states, and the model that is left."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from gemmatune_api.names import ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends import whole
from gemmatune_trainer.backends.forward import labelled_loss
from gemmatune_trainer.backends.torch import TorchBackend
from tests.support.trainerhost import TrainerHost
from tests.support.wait import wait_for
from tests.trainer.conftest import ListedRows
from tests.trainer.test_run import at, attempt, output, prepared, steps_done
from tests.trainer.test_torch_backend import LENGTHS, Watcher, largest_difference, make_backend

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_full(make_config: MakeConfig) -> MakeConfig:
    """A configuration of full tuning."""
    return lambda generation="3", **changes: make_config(generation, **{"kind": "full", **changes})


def weights(backend: TorchBackend) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in whole.trained(backend._model)}


def train(config: RunConfig, steps: int = 3, start: Path | None = None) -> tuple[TorchBackend, Watcher]:
    backend, watcher = make_backend(config), Watcher()
    backend.train(ListedRows(LENGTHS, masked=2), len(LENGTHS), steps, start, watcher)
    return backend, watcher


@pytest.mark.parametrize("generation", ["1", "2", "3"])
def test_every_weight_gets_the_gradient_of_plain_cross_entropy(make_full: MakeConfig, generation: str) -> None:
    """Also the tied embedding, which is the head, through Gemma 2's soft cap."""
    model = make_backend(make_full(generation))._model
    ids, labels = (torch.tensor([part]) for part in ListedRows([37], masked=5).row(0))
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    labelled_loss(model, ids, positions, labels).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum").backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        largest = float(value.grad.abs().max())
        assert float((found[name] - value.grad).abs().max()) < 1e-4 * max(largest, 1.0), name


def test_every_split_of_a_step_trains_the_same(make_full: MakeConfig) -> None:
    together, watched = train(make_full(micro_batch_size=4, learning_rate=1e-3))
    for changes in ({"micro_batch_size": 1}, {"packing": False}, {"gradient_checkpointing": True}):
        split, others = train(make_full(**{"micro_batch_size": 4, "learning_rate": 1e-3, **changes}))
        for one, other in zip(watched.steps, others.steps, strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert largest_difference(weights(together), weights(split)) < 2e-3, changes


def test_masters_keep_what_bf16_would_lose(make_full: MakeConfig) -> None:
    """One step of 1e-6 moves every layer's weights, though most of them not in 16 bit."""
    backend, _ = train(make_full(precision="bf16", learning_rate=1e-6, schedule="constant", warmup_steps=0), steps=1)
    fresh = weights(make_backend(make_full()))
    for name, value in weights(backend).items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, fresh[name]), name
    name = "model.layers.0.mlp.up_proj.weight"
    moved = weights(backend)[name].bfloat16() != fresh[name].bfloat16()
    assert float(moved.float().mean()) < 0.05


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor"])
def test_a_saved_state_resumes_bit_equal(make_full: MakeConfig, tmp_path: Path, optimizer: str) -> None:
    config = make_full(optimizer=optimizer, learning_rate=1e-3)
    rows = ListedRows(LENGTHS)
    first = make_backend(config)
    save = Watcher(lambda step: first.snapshot()(tmp_path / "state") if step == 2 else None)
    first.train(rows, len(LENGTHS), 4, None, save)
    second = make_backend(config)
    rest = Watcher()
    second.train(rows, len(LENGTHS), 4, tmp_path / "state", rest)
    assert [step.loss for step in rest.steps] == [step.loss for step in save.steps[2:]]
    assert largest_difference(weights(first), weights(second)) == 0


def test_a_large_state_lies_in_several_files(
    make_full: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "SHARD_BYTES", 100_000)
    backend, _ = train(make_full(learning_rate=1e-3), steps=1)
    backend.save_weights(tmp_path)
    assert len(list(tmp_path.glob(whole.FILES))) > 3
    fresh = make_backend(make_full())
    fresh.restore_weights(tmp_path)
    assert largest_difference(weights(backend), weights(fresh)) == 0
    next(iter(sorted(tmp_path.glob(whole.FILES)))).unlink()
    with pytest.raises(whole.ModelInvalid, match="missing"):
        fresh.restore_weights(tmp_path)


@pytest.mark.parametrize(("generation", "precision"), [("1", "fp32"), ("2", "bf16"), ("3", "bf16")])
def test_the_model_is_verified_after_a_reload(
    make_full: MakeConfig, tmp_path: Path, generation: str, precision: str
) -> None:
    """What is left loads by transformers alone, in 16 bit, each weight rounded once from its master."""
    backend, _ = train(make_full(generation, precision=precision, learning_rate=1e-3), steps=2)
    masters = weights(backend)
    backend.save_result(tmp_path / "model")
    found = backend.verify(tmp_path / "model", ListedRows([20]).row(0)[0])
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert (found.largest_difference == 0) == (precision == "fp32")
    assert found.delta > 0
    assert found.parameters == sum(value.numel() for value in masters.values())
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    assert settings["dtype"] == str(dtype).removeprefix("torch.")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == dtype
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    for name, value in loaded.named_parameters():
        assert torch.equal(value, masters[name].to(dtype)), name


def test_a_model_that_is_not_the_trained_one_is_refused(make_full: MakeConfig, tmp_path: Path) -> None:
    row = ListedRows([20]).row(0)[0]
    untrained = make_backend(make_full())
    untrained.save_result(tmp_path / "untrained")
    with pytest.raises(whole.ModelInvalid, match="changed no weight"):
        untrained.verify(tmp_path / "untrained", row)
    backend, _ = train(make_full(learning_rate=1e-3), steps=1)
    backend.save_result(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(whole.ModelInvalid, match=r"1 of .*up_proj"):
        backend.verify(tmp_path / "model", row)


def test_a_whole_run_stopped_and_resumed(make_full: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """Killed by SIGTERM and resumed: bit-equal to the undisturbed run; then the model, its card and its manifest."""
    settings: dict[str, Any] = {"max_steps": 40, "every_steps": 1000, "learning_rate": 1e-4, "micro_batch_size": 1}
    config = make_full(**settings)
    undisturbed = prepared(trainer_host, at(config, tmp_path / "undisturbed"), tmp_path / "u")
    done = trainer_host.run("train", undisturbed, tmp_path / "whole")
    assert done.poll() == ExitCode.DONE, done.log()
    prepared(trainer_host, config, tmp_path)
    stopped = trainer_host.start("train", config, tmp_path / "first")
    wait_for(lambda: steps_done(stopped) >= 3, "three steps", seconds=180, detail=stopped.log)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == ExitCode.INTERRUPTED, stopped.log()
    resumed = trainer_host.run("train", attempt(config, 2), tmp_path / "second")
    assert resumed.poll() == ExitCode.DONE, resumed.log()
    assert resumed.events("training")[0]["from_step"] == stopped.message.step
    one, other = (load_file(output(run) / "model" / "model.safetensors") for run in (undisturbed, config))
    assert largest_difference(one, other) == 0
    artifacts = resumed.status["artifacts"]
    assert artifacts["model"] == (output(config) / "model").as_uri()
    assert "adapter" not in artifacts
    assert artifacts["serveCommand"].startswith(f"vllm serve {output(config)}/model ")
    assert resumed.events("result verified")[0]["delta"] > 0
    assert not (output(config) / "adapter").exists()
    names = {path.name for path in (output(config) / "model").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    manifest = json.loads((output(config) / "manifest.json").read_text())
    assert {file["name"].removeprefix("model/") for file in manifest["model"]} == names
    card = (output(config) / "model" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "PeftModel" not in card
    assert "full tuning" in (output(config) / "report" / "report.html").read_text()
    merge = trainer_host.run("merge", config, tmp_path / "merge")
    assert merge.poll() == ExitCode.INVALID_CONFIG
    assert "nothing to merge" in merge.message.message
