"""The xla backend on virtual devices: equal to plain PyTorch, divided among the devices, exact after a resume."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gemmatune_api import memory_xla
from gemmatune_api.memory import Setting
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import backends
from gemmatune_trainer.backends import forward, xla_forward
from gemmatune_trainer.backends.xla import XlaBackend
from gemmatune_trainer.data.pack import collate
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.models import fetch
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag
from tests.support.otherrank import OtherToldToStop
from tests.support.plaintraining import reference
from tests.support.soak import SOAK
from tests.support.watcher import Watcher
from tests.trainer.conftest import ListedRows
from tests.xla.conftest import DEVICES, MESHES

MakeConfig = Callable[..., RunConfig]
LENGTHS = [40, 5, 38, 6, 39, 4, 41, 7, 20, 30, 33, 12, 90, 100, 17, 22]
TOLERANCE = 1e-4


def loaded(config: RunConfig) -> XlaBackend:
    backend = backends.make(config, fetch(config.model, weights=True), StopFlag(), Ranks())
    assert isinstance(backend, XlaBackend)
    backend.load()
    return backend


CASES: dict[str, dict[str, Any]] = {
    "lora 1": {"generation": "1", "mesh": MESHES[0]},
    "lora 2": {"generation": "2", "mesh": MESHES[1], "gradient_checkpointing": True, "weight_decay": 3.0},
    "dora 2": {"generation": "2", "mesh": MESHES[1], "dora": True},
    "lora 3": {"generation": "3", "mesh": MESHES[1]},
    "full 3": {"generation": "3", "mesh": MESHES[1], "kind": "full", "learning_rate": 5e-4},
    "full 1": {"generation": "1", "mesh": MESHES[0], "kind": "full", "learning_rate": 5e-4},
    "full 2 adafactor": {
        "generation": "2",
        "mesh": MESHES[0],
        "kind": "full",
        "learning_rate": 5e-4,
        "optimizer": "adafactor",
        "gradient_checkpointing": True,
        "weight_decay": 3.0,
    },
}
if SOAK:
    CASES["full 2"] = {**CASES["full 1"], "generation": "2", "mesh": MESHES[1]}
    CASES["lora 3 with a vision tower"] = {**CASES["lora 2"], "generation": "3-images"}


def check_division(backend: XlaBackend, large: int, moments: bool) -> None:
    """Of every large weight, and where it is trained of its moments, a chip has no more than its share."""
    for what in (backend.device_bytes(), backend.optimizer_bytes() if moments else {}):
        for name, (on_one, of_all) in what.items():
            if ".lora_" not in name and of_all >= large:
                assert on_one <= 1.15 * of_all / DEVICES, name


def check_planned(backend: XlaBackend, config: RunConfig) -> None:
    """A chip holds what the planner counts, to the byte: of the base, of the adapter, and of AdamW's moments."""
    model, method, mesh = fetch(config.model, weights=True).model, config.method, config.mesh
    assert mesh is not None
    chips, wide = (mesh.data, mesh.model), 4 if method.kind == "full" or config.training.precision == "fp32" else 2
    held = {name: on_one for name, (on_one, _) in backend.device_bytes().items()}
    base = sum(size for name, size in held.items() if ".lora_" not in name)
    assert base == wide * memory_xla.divided(model, chips)
    own = {"rank": method.rank, "targets": method.target_modules, "dora": method.dora} if method.rank else {}
    setting = Setting(method=method.kind, rows=1, length=16, checkpointing=False, device="tpu", **own)
    trained = memory_xla.trained(model, setting, chips)
    if method.kind == "lora":
        assert sum(held.values()) - base == 4 * trained
    if config.training.optimizer == "adamw_torch":
        assert sum(on_one for on_one, _ in backend.optimizer_bytes().values()) == 2 * 4 * trained


@pytest.mark.parametrize("case", CASES)
def test_losses_of_20_steps_equal_those_of_plain_pytorch(make_config: MakeConfig, case: str) -> None:
    """fp32, relative difference at most 1e-4; nothing is compiled after step 2; large weights are divided evenly."""
    config = make_config(global_batch_size=8, max_steps=20, warmup_steps=3, **CASES[case])
    rows = ListedRows(LENGTHS)
    backend = loaded(config)
    watcher = Watcher()
    tally = backend.train(rows, len(LENGTHS), 20, None, watcher)
    losses = [step.loss for step in watcher.steps]
    expected = [step.loss for step in reference(config, rows)]
    assert losses[-1] < 0.95 * losses[0]
    assert max(abs(one / other - 1) for one, other in zip(losses, expected, strict=True)) <= TOLERANCE
    assert tally.late == 0
    assert 0 < tally.compilations <= 4
    if "tower" not in case:  # what is divided and counted is the text decoder
        check_division(backend, 4096, moments=case in ("full 1", "full 2", "full 3"))
        check_planned(backend, config)


def test_a_step_looks_for_no_package(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marking a thousand tensors by way of torch_xla's mark_sharding looked for two of them on the disk each time."""
    looked: list[str] = []

    class Spy:
        def find_spec(self, name: str, *_: Any) -> None:
            looked.append(name)

    monkeypatch.setattr(sys, "meta_path", [Spy(), *sys.meta_path])
    backend = loaded(make_config(global_batch_size=8, max_steps=4, optimizer="adafactor"))
    backend.train(
        ListedRows(LENGTHS), len(LENGTHS), 4, None, Watcher(lambda step: looked.clear() if step.number == 2 else None)
    )
    assert looked == []


RESUMED: list[dict[str, Any]] = [
    {"dropout": 0.1, "precision": "bf16", "gradient_checkpointing": True},
    {"kind": "full", "mesh": MESHES[1], "precision": "bf16"},
    {"kind": "full", "optimizer": "adafactor"},
]
if SOAK:
    RESUMED += [{"generation": each, "kind": kind} for each in "123" for kind in ("lora", "full")]


@pytest.mark.parametrize("changes", RESUMED)
def test_a_saved_state_resumes_exactly_and_the_result_is_what_was_trained(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Steps 1-2 saved and 3-5 in a new backend = steps 1-5 in one, to the bit; plain libraries load the result.

    Step 5 is the first that must not compile after the resume.
    """
    config = make_config(global_batch_size=8, max_steps=5, **changes)
    rows = ListedRows(LENGTHS)
    first = loaded(config)
    save = Watcher(lambda step: first.snapshot()(tmp_path / "state") if step.number == 2 else None)
    first.train(rows, len(LENGTHS), 5, None, save)
    first.save_weights(tmp_path / "end")
    second = loaded(config)
    rest = Watcher()
    assert second.train(rows, len(LENGTHS), 5, tmp_path / "state", rest).late == 0
    assert [step.loss for step in rest.steps] == [step.loss for step in save.steps[2:]]
    second.save_weights(tmp_path / "again")
    for path in (tmp_path / "end").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    row = rows.row(0)[0]
    second.save_result(tmp_path / "result")
    found = second.verify(tmp_path / "result", row)
    assert found.delta > 0
    trained = second._logits(row)
    folder = config.model.uri.removeprefix("file://") if config.method.kind == "lora" else tmp_path / "result"
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if config.method.kind == "lora":
        plain = PeftModel.from_pretrained(plain, tmp_path / "result")
    with torch.no_grad():
        difference = (plain(torch.tensor([row])).logits - trained).abs().max()
    assert difference <= (1e-4 if config.training.precision == "fp32" else 0.05 * float(trained.abs().max()))


def test_generation_and_evaluation_equal_plain_pytorch(make_config: MakeConfig) -> None:
    config = make_config("2", mesh=MESHES[1])
    rows = ListedRows(LENGTHS)
    backend = loaded(config)
    plain = AutoModelForCausalLM.from_pretrained(
        config.model.uri.removeprefix("file://"), dtype=torch.float32, attn_implementation="eager"
    )
    prompt = rows.row(0)[0]
    wanted = plain.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert backend.generate(prompt, 5, []) == wanted[0, len(prompt) :].tolist()
    assert len(backend.generate(prompt, 5, [wanted[0, len(prompt) + 2].item()])) <= 2
    total, labelled = backend.evaluate(rows, len(LENGTHS), lambda: None)
    expected = 0.0
    with torch.no_grad():
        for ids, labels in rows.items:
            batch = collate([(ids, labels)], [[0]], 0)
            arrays = (torch.from_numpy(array) for array in (batch.input_ids, batch.position_ids, batch.labels))
            expected += float(forward.labelled_loss(plain, *arrays))
    assert labelled == sum(len(ids) - 1 for ids, _ in rows.items)
    assert total == pytest.approx(expected, rel=TOLERANCE)
    backend._ranks = OtherToldToStop(size=2)
    assert backend.generate(prompt, 5, []) == []
    assert backend._stop.raised, "rank 0 does not take it for the model's answer"


def test_a_mesh_of_other_devices_is_refused(make_config: MakeConfig) -> None:
    config = make_config(mesh=(3, 1))
    with pytest.raises(InvalidConfig, match=f"the mesh is data 3 x model 1, but there are {DEVICES} devices"):
        backends.make(config, fetch(config.model, weights=True), StopFlag(), Ranks())


def test_documents_do_not_see_each_other() -> None:
    """By hand: two documents of two and three tokens; a sliding window of two."""

    class Config:
        layer_types = ("full_attention", "sliding_attention")
        sliding_window = 2

    found = xla_forward.masks(Config(), torch.tensor([[0, 1, 0, 1, 2]]), torch.float32)
    assert isinstance(found, dict)
    seen = [[(value == 0).int().tolist() for value in found[kind][0, 0]] for kind in Config.layer_types]
    assert seen[0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert seen[1] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


@pytest.mark.model
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not SOAK, reason="compiles for minutes: make soak-xla")
@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3},
        # Adafactor: AdamW's moments alone would be 2 GB more, of which nothing new could be seen.
        {"kind": "full", "learning_rate": 1e-5, "optimizer": "adafactor", "gradient_checkpointing": True},
    ],
    ids=["lora", "full"],
)
def test_the_real_gemma(gemma_270m: Path, make_config: MakeConfig, changes: dict[str, Any]) -> None:
    """Gemma 3 270M: losses of 20 steps as plain PyTorch's, every large weight divided."""
    config = make_config(global_batch_size=8, max_steps=20, mesh=MESHES[1], **changes)
    config = config.model_copy(update={"model": config.model.model_copy(update={"uri": gemma_270m.as_uri()})})
    rows = ListedRows(LENGTHS, vocabulary=20000)
    backend = loaded(config)
    watcher = Watcher()
    assert backend.train(rows, len(LENGTHS), 20, None, watcher).late == 0
    check_division(backend, 1 << 20, moments=False)
    del backend
    expected = [step.loss for step in reference(config, rows)]
    assert max(abs(step.loss / other - 1) for step, other in zip(watcher.steps, expected, strict=True)) <= TOLERANCE
