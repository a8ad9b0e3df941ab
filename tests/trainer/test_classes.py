"""Gemmas that are more than a plain decoder, from load to merge: vision towers, shared keys, per-layer embeddings.

Gemma 3 4B, 12B and 27B and all of Gemma 4 are of these classes; the other tests train Gemma 1, 2 and 3 as decoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from gemmatune_api.names import ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.merger import Merger
from gemmatune_trainer.backends.parallel import layers_of
from gemmatune_trainer.generation import terminator_ids
from gemmatune_trainer.models import fetch
from tests.support.tinytorch import KINDS, generation_of
from tests.support.trainerhost import TrainerHost
from tests.trainer.conftest import ListedRows
from tests.trainer.test_merge import assert_merged
from tests.trainer.test_torch_backend import LENGTHS, Watcher, largest_difference, make_backend, weights

MakeConfig = Callable[..., RunConfig]
CLASSES = {
    "3-images": "Gemma3ForConditionalGeneration",
    "3n": "Gemma3nForCausalLM",
    "4": "Gemma4ForCausalLM",
    "4-images": "Gemma4ForConditionalGeneration",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a tiny model, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(config: RunConfig) -> tuple[Any, Watcher]:
    backend, watcher = make_backend(config), Watcher()
    backend.train(ListedRows(LENGTHS, masked=2), len(LENGTHS), 3, None, watcher)
    return backend, watcher


@pytest.mark.parametrize("kind", KINDS)
def test_trained_verified_reloaded_and_merged(make_config: MakeConfig, kind: str, tmp_path: Path) -> None:
    """Only the text decoder is adapted, under the keys of the published class, which loads what was written."""
    config = make_config(kind, micro_batch_size=4)
    files = fetch(config.model, weights=True)
    known = files.model
    assert (known.model_class, known.generation) == (CLASSES[kind], generation_of(kind))
    backend, _ = trained(config)
    assert type(backend._model.get_base_model()).__name__ == CLASSES[kind]
    assert len(layers_of(backend._model)) == known.layers
    names = weights(backend)
    assert names
    assert all(name.startswith(known.rules.key_prefix) for name in names), sorted(names)[:3]
    assert sum(value.numel() for value in names.values()) == known.trainable(config.method.rank or 0, "all-linear")
    moved = [name for name, value in names.items() if "lora_B" in name and value.abs().max() > 0]
    assert len(moved) == len(names) // 2, "every adapted layer has a gradient"
    row = ListedRows([40]).row(0)
    expected = backend._logits(row[0])
    backend.save_result(tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys() == names.keys()
    found = backend.verify(tmp_path / "adapter", row[0])
    assert found.largest_difference == 0
    assert found.delta > 0.01

    loads = getattr(transformers, known.rules.auto_class)
    base = loads.from_pretrained(files.folder, attn_implementation=known.rules.attention, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        plain = tuned(input_ids=torch.tensor([row[0]]), use_cache=False).logits
    torch.testing.assert_close(plain.float(), expected, rtol=1e-3, atol=1e-3)

    merger = Merger(files, [row], False, lambda doing: None)
    merger.load(tmp_path / "adapter")
    merger.write(tmp_path / "merged", terminator_ids(files.tokenizer))
    assert merger.verify(tmp_path / "merged").delta > 0


@pytest.mark.parametrize("kind", KINDS)
def test_splits_and_recomputing_change_nothing(make_config: MakeConfig, kind: str) -> None:
    """Also where layers share keys, which a recomputed layer has to find again."""
    whole, watched = trained(make_config(kind, micro_batch_size=4))
    other, others = trained(make_config(kind, micro_batch_size=1, gradient_checkpointing=True))
    for one, two in zip(watched.steps, others.steps, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-4)
        assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-2)
    assert largest_difference(weights(whole), weights(other)) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes"), [("3-images", {"kind": "qlora", "precision": "bf16"}), ("4-images", {})])
def test_a_whole_run(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    """From its rows to the merged weights, with held-out rows and samples."""
    config = make_config(kind, eval_fraction=0.2, max_steps=3, **changes)
    for role in ("prepare", "train", "merge"):
        done = trainer_host.run(role, config, tmp_path / role)
        assert done.poll() == ExitCode.DONE, done.log()[-4000:]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["verified"]["delta"] > 0
    assert len(manifest["samples"]) == 1
    assert_merged(config)
