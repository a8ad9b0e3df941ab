"""Backend xla goes on from the state of an 8-bit optimizer, as a GPU leaves it, and from full tuning by torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmatune_api.runconfig import RunConfig
from tests.support.torchstate import trained_by_torch
from tests.support.watcher import Watcher
from tests.trainer.conftest import ListedRows
from tests.xla.conftest import MESHES
from tests.xla.test_backend import LENGTHS, TOLERANCE, loaded

BLOCK = 256
SAVED, STEPS = 2, 4


def quantised(value: torch.Tensor, number: str, codes: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """A moment as bitsandbytes stores it, and what those numbers mean: each block by its largest."""
    flat = value.reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    constants = blocks.abs().amax(1).clamp_min(1e-30)
    nearest = ((blocks / constants[:, None])[..., None] - codes).abs().argmin(-1)
    meant = (codes[nearest] * constants[:, None]).view(-1)[: flat.numel()].view_as(value)
    stored = nearest.to(torch.uint8).view(-1)[: flat.numel()].view_as(value)
    return {f"state{number}": stored, f"qmap{number}": codes, f"absmax{number}": constants}, meant


def test_a_state_in_8_bits_is_read_as_what_it_means(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The losses that follow are those after the same numbers in 32 bits; a schedule of one group is read too."""
    config, rows = make_config(global_batch_size=8, max_steps=STEPS), ListedRows(LENGTHS)
    folder, same = tmp_path / "8 bits", tmp_path / "32 bits"
    first = loaded(config)
    watch = Watcher(lambda step: first.snapshot()(folder) if step.number == SAVED else None)
    first.train(rows, len(LENGTHS), STEPS, None, watch)
    shutil.copytree(folder, same)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    codes = (torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256))
    for number, held in state["state"].items():
        parts = [quantised(held[f"exp_avg{end}"], key, codes[place]) for place, (end, key) in enumerate(KEYS)]
        state["state"][number] = {
            "step": int(held["step"]),
            "__bnb_optimizer_quant_state__": {**parts[0][0], **parts[1][0]},
        }
        held["exp_avg"], held["exp_avg_sq"] = parts[0][1], parts[1][1]
        plain = torch.load(same / "optimizer.pt", weights_only=True)
        plain["state"][number] = held
        torch.save(plain, same / "optimizer.pt")
    torch.save(state, folder / "optimizer.pt")
    schedule = torch.load(folder / "scheduler.pt", weights_only=True)
    assert len(schedule["base_lrs"]) == 2, "as many groups as torch's optimizers have"
    alone = {key: value[:1] if isinstance(value, list) else value for key, value in schedule.items()}
    torch.save(alone, folder / "scheduler.pt")
    found = []
    for start in (folder, same):
        rest = Watcher()
        loaded(config).train(rows, len(LENGTHS), STEPS, start, rest)
        found.append([(step.number, step.loss, step.learning_rate) for step in rest.steps])
    assert [number for number, _, _ in found[0]] == [3, 4]
    assert found[0] == found[1]
    assert found[0][0][1:] == (watch.steps[2].loss, watch.steps[2].learning_rate)


KEYS = (("", "1"), ("_sq", "2"))


def test_full_tuning_goes_on_from_what_torch_left(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Weights, moments and schedule of the real backend torch: the losses that follow are those that it has itself."""
    config = make_config(kind="full", learning_rate=1e-3, global_batch_size=8, max_steps=6, mesh=MESHES[1])
    undisturbed = trained_by_torch(config, LENGTHS, SAVED, tmp_path / "state")
    rest = Watcher()
    loaded(config).train(ListedRows(LENGTHS), len(LENGTHS), 6, tmp_path / "state", rest)
    assert [step.number for step in rest.steps] == [3, 4, 5, 6]
    assert [step.loss for step in rest.steps] == pytest.approx(undisturbed[SAVED:], rel=TOLERANCE)
