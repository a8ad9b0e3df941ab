"""The torch backend in one process, on tiny models: splits, quantised gradients, saved states, the adapter."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends import adapter
from gemmatune_trainer.backends.base import Step
from gemmatune_trainer.backends.forward import labelled_loss
from gemmatune_trainer.backends.schedules import learning_rate
from gemmatune_trainer.backends.torch import TorchBackend
from gemmatune_trainer.backends.torch_trainer import StepLoader
from gemmatune_trainer.data.order import step_rows
from gemmatune_trainer.models import fetch
from gemmatune_trainer.stop import StopFlag
from tests.trainer.conftest import ListedRows

MakeConfig = Callable[..., RunConfig]
LENGTHS = [9, 30, 14, 22, 6, 41, 17, 12, 25, 8]


class Watcher:
    """Keeps the steps of a training, and does something after one of them."""

    def __init__(self, after: Callable[[int], None] | None = None) -> None:
        self.steps: list[Step] = []
        self.micro_batches = 0
        self._after = after

    def micro_batch(self) -> None:
        self.micro_batches += 1

    def step_done(self, step: Step) -> None:
        self.steps.append(step)
        if self._after:
            self._after(step.number)


def make_backend(config: RunConfig) -> TorchBackend:
    files = fetch(config.model, weights=True)
    backend = TorchBackend(config, files, StopFlag())
    backend.load()
    return backend


def weights(backend: TorchBackend) -> dict[str, torch.Tensor]:
    return {
        name: value.clone()
        for name, value in get_peft_model_state_dict(backend._model, save_embedding_layers=False).items()
    }


def train(config: RunConfig, steps: int = 3, start: Path | None = None) -> tuple[dict[str, torch.Tensor], Watcher]:
    backend = make_backend(config)
    watcher = Watcher()
    backend.train(ListedRows(LENGTHS, masked=2), len(LENGTHS), steps, start, watcher)
    return weights(backend), watcher


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_every_split_of_a_step_trains_the_same(make_config: MakeConfig) -> None:
    """Accumulation 1x4 equals 4x1, 2x2 and 3+1, within rounding; so does packing on and off."""
    whole, watched = train(make_config(micro_batch_size=4))
    assert watched.micro_batches == 3
    for changes in ({"micro_batch_size": 1}, {"micro_batch_size": 2}, {"micro_batch_size": 3}, {"packing": False}):
        split, others = train(make_config(**{"micro_batch_size": 4, **changes}))
        for one, other in zip(watched.steps, others.steps, strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-4)
            assert other.labelled_tokens == one.labelled_tokens
        assert largest_difference(whole, split) < 2e-3, changes


def test_gradient_checkpointing_changes_nothing(make_config: MakeConfig) -> None:
    plain, _ = train(make_config(dropout=0.1))
    recomputed, _ = train(make_config(dropout=0.1, gradient_checkpointing=True))
    assert largest_difference(plain, recomputed) < 1e-5


@pytest.mark.parametrize("packing", [True, False])
def test_the_rows_of_a_step_come_from_order_alone(make_config: MakeConfig, packing: bool) -> None:
    """Whatever the micro-batches: packing and length only arrange the rows of one step."""
    rows = ListedRows(LENGTHS)
    expected = [sorted(tuple(rows.row(index)[0]) for index in step_rows(42, step, len(LENGTHS), 4)) for step in (2, 3)]
    for size in (1, 3, 4):
        loader = StepLoader(make_config(micro_batch_size=size, packing=packing), rows, len(LENGTHS), 4, 2, pad_id=0)
        batches = list(loader)
        assert len(batches) == 2 * -(-4 // size)
        half = len(batches) // 2
        assert [sorted(seen(batches[:half])), sorted(seen(batches[half:]))] == expected


def seen(batches: list[dict[str, torch.Tensor]]) -> list[tuple[int, ...]]:
    """The rows in micro-batches: each begins with BOS, and 0 is padding."""
    found = []
    for batch in batches:
        for sequence in batch["input_ids"].tolist():
            text = " ".join(str(token) for token in sequence if token)
            found += [tuple(map(int, f"2 {row}".split())) for row in text.removeprefix("2 ").split(" 2 ")]
    return found


def test_rows_that_are_not_packed_lie_beside_others_of_their_length(make_config: MakeConfig) -> None:
    rows = ListedRows([40, 5, 38, 6, 39, 4, 41, 7])
    config = make_config(micro_batch_size=2, packing=False, global_batch_size=8)
    widths = [batch["input_ids"].shape for batch in StepLoader(config, rows, 8, 1, first_step=0, pad_id=0)]
    assert widths == [(2, 41), (2, 39), (2, 7), (2, 5)]


@pytest.mark.parametrize("packing", [True, False])
def test_the_next_step_is_made_in_the_background_and_nothing_changes(
    make_config: MakeConfig, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-equal weights with dropout, whether the rows are read ahead or when they are asked for."""
    config = make_config(dropout=0.1, packing=packing)
    threads = set()
    whole_step = StepLoader.step

    def noticed(loader: StepLoader, number: int) -> list[dict[str, torch.Tensor]]:
        threads.add(threading.current_thread())
        return whole_step(loader, number)

    monkeypatch.setattr(StepLoader, "step", noticed)
    ahead, watched = train(config)
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    monkeypatch.setattr(
        StepLoader, "__iter__", lambda self: (one for step in range(3) for one in whole_step(self, step))
    )
    asked, others = train(config)
    assert largest_difference(ahead, asked) == 0.0
    assert [step.loss for step in watched.steps] == [step.loss for step in others.steps]


def test_what_fails_in_the_background_ends_training(make_config: MakeConfig) -> None:
    class Broken(ListedRows):
        def row(self, index: int) -> tuple[list[int], list[int]]:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(iter(StepLoader(make_config(), Broken(LENGTHS), len(LENGTHS), 4, 0, pad_id=0)))


SCHEDULES = {
    "linear": [0, 1 / 2, 1, 2 / 3, 1 / 3],
    "cosine": [0, 1 / 2, 1, 3 / 4, 1 / 4],
    "constant": [1, 1, 1, 1, 1],
    "constant_with_warmup": [0, 1 / 2, 1, 1, 1],
}
"""Parts of the highest learning rate, by step: two of warm-up, three after them."""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_tells_the_learning_rate_that_it_was_made_with(make_config: MakeConfig, schedule: str) -> None:
    """That of the optimizer, which backend keras computes by itself; not that of the step after it."""
    config = make_config(schedule=schedule, warmup_steps=2, max_steps=5)
    used: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda made, *_: used.append(float(made.param_groups[0]["lr"])))
    try:
        _, watched = train(config, steps=5)
    finally:
        hook.remove()
    assert [step.learning_rate for step in watched.steps] == used
    assert used == pytest.approx([config.training.learning_rate * part for part in SCHEDULES[schedule]], rel=1e-9)
    assert used == pytest.approx([learning_rate(config.training, step, 5) for step in range(5)], rel=1e-9)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1, "micro_batch_size": 1}, {"optimizer": "adafactor"}])
def test_a_saved_state_resumes_bit_equal(make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any]) -> None:
    """fp32: steps 1-2 saved, steps 3-5 in a new backend = steps 1-5 in one."""
    config = make_config(**changes)
    rows = ListedRows(LENGTHS)
    first = make_backend(config)
    save = Watcher(lambda step: first.snapshot()(tmp_path / "state") if step == 2 else None)
    first.train(rows, len(LENGTHS), 5, None, save)
    second = make_backend(config)
    rest = Watcher()
    second.train(rows, len(LENGTHS), 5, tmp_path / "state", rest)
    assert [step.number for step in rest.steps] == [3, 4, 5]
    for told in ("loss", "learning_rate"):
        assert [getattr(step, told) for step in rest.steps] == [getattr(step, told) for step in save.steps[2:]]
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name]), name


def test_a_state_saved_amid_a_step_is_that_of_the_last_step(make_config: MakeConfig, tmp_path: Path) -> None:
    """The partial accumulation and the random numbers it drew are dropped."""
    config = make_config(dropout=0.1, micro_batch_size=1)
    rows = ListedRows(LENGTHS)

    class Stop(Watcher):
        def micro_batch(self) -> None:
            super().micro_batch()
            if self.micro_batches == 11:  # two of four micro-batches of step 3 are done
                raise KeyboardInterrupt

    stopped = make_backend(config)
    with pytest.raises(KeyboardInterrupt):
        stopped.train(rows, len(LENGTHS), 4, None, Stop())
    stopped.snapshot()(tmp_path / "state")
    resumed = make_backend(config)
    rest = Watcher()
    resumed.train(rows, len(LENGTHS), 4, tmp_path / "state", rest)
    assert [step.number for step in rest.steps] == [3, 4]
    undisturbed = make_backend(config)
    undisturbed.train(rows, len(LENGTHS), 4, None, Watcher())
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(resumed)[name]), name


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_qlora_gradients_survive_a_forward_pass_before_training(make_config: MakeConfig, precision: str) -> None:
    """bitsandbytes must not repack its weights in an eval pass: the gradients after it are bit-equal."""
    backend = make_backend(make_config(kind="qlora", precision=precision))
    ids, labels = ListedRows([40]).row(0)
    batch = (torch.tensor([ids]), torch.arange(len(ids)).unsqueeze(0), torch.tensor([labels]))
    with torch.no_grad():
        for name, value in backend._model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.1, generator=torch.Generator().manual_seed(5))

    def gradients() -> list[torch.Tensor]:
        backend._model.train()
        backend._model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            labelled_loss(backend._model, *batch).backward()
        return [value.grad.clone() for value in backend._model.parameters() if value.requires_grad]

    before = gradients()
    backend.generate(ids[:8], 6, [1])
    backend._logits(ids)
    after = gradients()
    assert any(float(value.abs().max()) > 0 for value in before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch_fused"])
def test_optimizers_by_name(make_config: MakeConfig, optimizer: str) -> None:
    """Each of them trains on a CPU, QLoRA's adapter stays fp32, and the loss goes down."""
    config = make_config(kind="qlora", precision="bf16", optimizer=optimizer, schedule="constant", learning_rate=2e-2)
    backend = make_backend(config)
    watcher = Watcher()
    backend.train(ListedRows(LENGTHS[:4]), 4, 6, None, watcher)
    adapter.check_dtypes(backend._model)
    assert watcher.steps[-1].loss < 0.9 * watcher.steps[0].loss


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "dora": {"kind": "lora", "dora": True},
    "nf4": {"kind": "qlora", "bits": 4},
    "fp4": {"kind": "qlora", "bits": 4, "quant_type": "fp4"},
    "8-bit": {"kind": "qlora", "bits": 8, "quant_type": None, "double_quant": None},
    "nf4 dora": {"kind": "qlora", "bits": 4, "dora": True},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("generation", ["2", "3"])
def test_the_adapter_is_verified_after_a_reload(
    make_config: MakeConfig, tmp_path: Path, generation: str, method: str
) -> None:
    backend = make_backend(make_config(generation, **METHODS[method]))
    backend.train(ListedRows(LENGTHS), len(LENGTHS), 2, None, Watcher())
    trained = weights(backend)
    backend.save_result(tmp_path / "adapter")
    found = backend.verify(tmp_path / "adapter", ListedRows([20]).row(0)[0])
    assert found.largest_difference == 0
    assert found.delta > 0
    assert found.parameters == sum(value.numel() for value in trained.values())
    assert largest_difference(trained, weights(backend)) == 0
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"].startswith("file://")
    assert settings["inference_mode"] is True
    assert set(settings["target_modules"]) >= {"q_proj", "down_proj"}
    assert settings["use_dora"] is METHODS[method].get("dora", False)
    keys = load_file(tmp_path / "adapter" / adapter.WEIGHTS)
    assert any("lora_magnitude_vector" in name for name in keys) is settings["use_dora"]
    assert all(name.startswith("base_model.model.model.layers.") for name in keys)


def test_an_adapter_that_is_not_the_trained_one_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    backend = make_backend(make_config())
    folder = tmp_path / "adapter"
    backend.save_result(folder)
    with pytest.raises(adapter.AdapterInvalid, match="changes nothing"):
        backend.verify(folder, ListedRows([20]).row(0)[0])
    backend.load()
    backend.train(ListedRows(LENGTHS), len(LENGTHS), 1, None, Watcher())
    backend.save_result(folder)
    tensors = load_file(folder / adapter.WEIGHTS)
    renamed = {
        name.replace("model.model.layers", "model.language_model.layers"): value for name, value in tensors.items()
    }
    save_file(renamed, folder / adapter.WEIGHTS)
    with pytest.raises(adapter.AdapterInvalid, match="missing"):
        backend.verify(folder, ListedRows([20]).row(0)[0])
