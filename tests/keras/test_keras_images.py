"""A tiny PaliGemma by the real trainer: it learns colours, equals transformers and PEFT, and keeps its tower."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemmatune_api.names import ENV_CACHE, ExitCode
from gemmatune_api.runconfig import RunConfig, RunMesh, RunModel
from gemmatune_api.spec import ImageTextFormat
from gemmatune_trainer.models import ModelFiles, fetch
from tests.keras.conftest import torch_python
from tests.support.pictures import PREFIX, write_shapes
from tests.support.tinymodels import IMAGE, write_paligemma
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.trainer.conftest import run_config

ROOT = Path(__file__).resolve().parents[2]
FORMAT = ImageTextFormat(image="file", prefix=PREFIX, suffix="{colour}")
STEPS = 60
HELD_OUT = 40


def about_images(config: RunConfig, **changes: Any) -> RunConfig:
    """The run on rows with images, on backend keras and 2 x 4 devices."""
    changes = {"text": None, "image_text": FORMAT, "packing": False, **changes}
    dataset = config.dataset.model_copy(update=changes)
    return config.model_copy(update={"backend": "keras", "mesh": RunMesh(data=2, model=4), "dataset": dataset})


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    config: RunConfig
    files: ModelFiles
    train: TrainerProcess
    output: Path
    checkpoint: Path
    unseen: Path


@pytest.fixture(scope="module")
def trained(trainer_host: TrainerHost, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A LoRA run on pictures of coloured shapes, from prepare to the manifest."""
    folder = tmp_path_factory.mktemp("colours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_CACHE, str(cache))
        unseen = write_shapes(folder / "unseen", HELD_OUT, seed=2)
        config = about_images(
            run_config(
                write_paligemma(folder / "model"),
                write_shapes(folder / "data", 160, seed=1),
                folder / "out",
                rank=8,
                alpha=16,
                max_steps=STEPS,
                every_steps=STEPS,
                global_batch_size=16,
                micro_batch_size=8,
                learning_rate=1e-2,
                eval_fraction=0.05,
                prompts=[PREFIX],
                images=[(folder / "unseen/pictures/000.jpg").as_uri()],
                from_eval=1,
                max_new_tokens=8,
            )
        )
        for role in ("prepare", "train"):
            done = trainer_host.run(role, config, folder / role)
            assert done.poll() == ExitCode.DONE, done.log()[-4000:]
        checkpoint = folder / "out" / "checkpoints" / f"step-{STEPS:08d}"
        yield Trained(config, fetch(config.model, weights=True), done, folder / "out", checkpoint, unseen)


@pytest.fixture(scope="module")
def backend(trained: Trained) -> Any:
    """The backend in this process, with a fresh adapter."""
    return made(trained.config, trained.files)


def made(config: RunConfig, files: ModelFiles) -> Any:
    from gemmatune_trainer.backends.keras_backend import KerasBackend
    from gemmatune_trainer.ranks import Ranks
    from gemmatune_trainer.stop import StopFlag

    found = KerasBackend(config, files, StopFlag(), Ranks())
    found.load()
    return found


def unseen(trained: Trained) -> list[tuple[Any, str]]:
    """Pictures that were not trained on, with their colours."""
    from gemmatune_trainer.data.images import decode

    rows = [json.loads(line) for line in trained.unseen.read_text().splitlines()]
    return [(decode((trained.unseen.parent / row["file"]).read_bytes(), IMAGE), row["colour"]) for row in rows]


def ids_of(trained: Trained, suffix: str = "") -> tuple[list[int], int]:
    """A row of the format as tokens, and how many of them are the prefix's."""
    from gemmatune_trainer.data.formats import ImageText
    from gemmatune_trainer.data.pack import IGNORED
    from gemmatune_trainer.data.templates import render

    tokenizer = trained.files.tokenizer
    found = tokenizer.encode(render(ImageText("", PREFIX, suffix or "x"), tokenizer.rules))
    prefix = found.labels.count(IGNORED)
    return (found.input_ids if suffix else found.input_ids[:prefix]), prefix


def logits(backend: Any, ids: list[int], prefix: int, image: Any) -> Any:
    """The backend's logits at the text's tokens of one row."""
    from gemmatune_trainer.backends import keras_mesh
    from gemmatune_trainer.backends.keras_batches import Batch, padded_length

    shape = (2, padded_length(len(ids), 1 << 30))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    tokens[:, : len(ids)], segments[:, : len(ids)] = ids, 1
    labels, prefixes = np.full(shape, -100, np.int32), np.full(2, prefix, np.int32)
    batch = backend.steps.device(Batch(tokens, labels, segments, prefixes, np.stack([image, image])))
    return keras_mesh.host_array(backend.steps.logits(*backend.steps.values(), batch))[0, : len(ids)]


def test_it_names_the_colour_of_shapes_that_it_has_not_seen(trained: Trained, backend: Any) -> None:
    backend.restore_weights(trained.checkpoint)
    (prompt, _), tokenizer = ids_of(trained), trained.files.tokenizer
    answers = [
        (tokenizer.decode(backend.generate(prompt, 8, [tokenizer.eos_id], image)), colour)
        for image, colour in unseen(trained)
    ]
    right = sum(answer == colour for answer, colour in answers)
    assert right >= 0.9 * HELD_OUT, answers


def test_the_report_shows_what_it_said_before_and_says_after(trained: Trained) -> None:
    samples = trained.train.status["samples"]
    assert [sample["prompt"] for sample in samples] == [PREFIX, PREFIX]
    assert all(sample["after"] in ("red", "green", "blue", "yellow") for sample in samples)
    assert all(sample["before"] != sample["after"] for sample in samples)
    assert PREFIX in (trained.output / "report/report.html").read_text()
    assert "PaliGemmaForConditionalGeneration" in (trained.output / "adapter/README.md").read_text()


def test_the_adapter_is_of_the_text_decoder_alone(trained: Trained) -> None:
    names = load_file(trained.output / "adapter/adapter_model.safetensors").keys()
    assert len(names) == 2 * 7 * 2
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    placed = {event["variable"]: event["placed"] for event in trained.train.events("sharding")}
    divided = {name for name, text in placed.items() if text != "every device has it"}
    assert any("attention/query/kernel" in name for name in divided)
    tower = {name for name in placed if "image_encoder" in name}
    assert tower
    assert not tower & divided, "the tower lies on every device"


def test_logits_are_those_of_transformers_and_of_peft(trained: Trained, backend: Any, tmp_path: Path) -> None:
    """Of a PaliGemma 1 with and without its adapter, and of a PaliGemma 2, whose window is shorter than the row."""
    from gemmatune_trainer.backends import keras_lora

    ids, prefix = ids_of(trained, "yellow")
    image, _ = unseen(trained)[0]
    other = write_paligemma(tmp_path / "other", "2")
    np.savez(tmp_path / "inputs.npz", ids=ids, prefix=prefix, image=image)
    folders = [trained.files.folder, trained.output / "adapter", other]
    files = [tmp_path / "inputs.npz", tmp_path / "outputs.npz", tmp_path / "resaved"]
    command = [torch_python(), "-m", "tests.support.palireference", *folders, *files]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # on tiny models, threads only wait for each other
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reference = np.load(tmp_path / "outputs.npz")
    assert all("language_model" in name for name in reference["names"])
    assert np.abs(reference["adapted"] - reference["base"]).max() > 0.1

    _resaved_is_the_same(backend, trained.files.folder, tmp_path / "resaved")
    backend.restore_weights(trained.checkpoint)
    assert np.abs(logits(backend, ids, prefix, image) - reference["adapted"]).max() <= 1e-4
    keras_lora.restore(backend._adapted, {name: np.zeros_like(value) for name, value in backend._trained().items()})
    assert np.abs(logits(backend, ids, prefix, image) - reference["base"]).max() <= 1e-4
    config = trained.config.model_copy(update={"model": RunModel(uri=other.as_uri())})
    second = made(config, fetch(config.model, weights=True))
    assert np.abs(logits(second, ids, prefix, image) - reference["other"]).max() <= 1e-4


def _resaved_is_the_same(backend: Any, first: Path, second: Path) -> None:
    """The keys that transformers 5 writes are found, whatever it calls the tower."""
    from gemmatune_trainer.backends.keras_weights import Checkpoint, table

    found = [table(backend._backbone, Checkpoint(folder)) for folder in (first, second)]
    written = [
        dict(Checkpoint(folder).arrays({item.key: None for item in items}))
        for folder, items in zip((first, second), found, strict=True)
    ]
    assert len(found[0]) == len(found[1]) == 59
    for one, other in zip(*found, strict=True):
        assert np.array_equal(written[0][one.key], written[1][other.key]), (one.key, other.key)


def test_full_tuning_leaves_the_tower_as_it_is(
    trainer_host: TrainerHost, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_CACHE, str(cache))
    model, data = write_paligemma(tmp_path / "model"), write_shapes(tmp_path / "data", 8, seed=4)
    changes: dict[str, Any] = {"kind": "full", "learning_rate": 1e-3, "max_steps": 2, "prompts": []}
    config = about_images(run_config(model, data, tmp_path / "out", **changes))
    for role in ("prepare", "train"):
        done = trainer_host.run(role, config, tmp_path / role)
        assert done.poll() == ExitCode.DONE, done.log()[-4000:]
    before: dict[str, Any] = load_file(model / "model.safetensors")
    after: dict[str, Any] = load_file(tmp_path / "out/model/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in changed
    assert not any("language_model" not in name for name in changed), "vision tower and projection"
