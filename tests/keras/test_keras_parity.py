"""Backend keras against plain transformers and PEFT, on 8 virtual devices: logits of the base, and of the adapter.

A soak does it for every generation, and for the real Gemma 3 270M after training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import backends
from gemmatune_trainer.backends import keras_mesh
from gemmatune_trainer.models import fetch
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag
from tests.keras.conftest import MakeConfig, torch_python
from tests.support.plainlogits import plain_logits
from tests.support.soak import SOAK, only_in_soak
from tests.support.watcher import Watcher
from tests.trainer.conftest import ListedRows

CLOSE = 1e-4
"""Largest difference of logits, in fp32."""


def loaded(config: RunConfig) -> Any:
    """The backend of a run with its model on the devices."""
    backend = backends.make(config, fetch(config.model, weights=True), StopFlag(), Ranks())
    backend.load()
    return backend


def shaken(backend: Any) -> None:
    """Gives the adapter a B, as training does."""
    random = np.random.default_rng(3)
    for item in backend._adapted:
        b = item.layer.lora_kernel_b
        keras_mesh.put(b, random.normal(0, 0.05, b.shape).astype(np.float32))


def compared(backend: Any, config: RunConfig, ids: list[int], folder: Path, change: Callable[[Any], None]) -> None:
    """The base, and the adapter after `change`, give the logits that plain transformers and PEFT give."""
    plain = backend.logits(ids)
    change(backend)
    trained = backend.logits(ids)
    backend.save_result(folder / "adapter")
    model = Path(config.model.uri.removeprefix("file://"))
    base, tuned = plain_logits(torch_python(), model, folder / "adapter", ids, folder)
    assert np.abs(plain - base).max() <= CLOSE
    assert np.abs(tuned - base).max() > 0.1, "the adapter matters"
    assert np.abs(trained - tuned).max() <= CLOSE


@pytest.mark.parametrize("generation", ["1", "2", "3"] if SOAK else ["3"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]] if SOAK else ["all-linear"])
def test_logits_of_tiny_models(
    make_config: MakeConfig, tmp_path: Path, generation: str, targets: str | list[str]
) -> None:
    """43 tokens: more than twice the sliding window."""
    config = make_config(generation, target_modules=targets)
    compared(loaded(config), config, [2, *range(108, 150)], tmp_path, shaken)


@pytest.mark.parametrize("generation", ["1", "2", "3"] if SOAK else ["2"])
def test_logits_where_keras_finds_a_tpu(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generation: str
) -> None:
    """KerasHub takes another attention there, which forgets the cap of Gemma 2's scores where the mask is traced."""
    config = make_config(generation)
    backend = loaded(config)
    monkeypatch.setattr(jax, "devices", lambda *_: [SimpleNamespace(platform="tpu")])
    compared(backend, config, [2, *range(108, 150)], tmp_path, shaken)


@only_in_soak
@pytest.mark.model
@pytest.mark.timeout(1200)
def test_the_real_gemma_3_270m_trained_and_resumed(make_config: MakeConfig, gemma_270m: Path, tmp_path: Path) -> None:
    """Three steps are saved, and two more follow in another backend, to the bit; the logits are then those of PEFT.

    It has one head of keys, which no mesh divides, and a table of 262,144 tokens that it does.
    """
    config = make_config(max_steps=5, weight_decay=0.1)
    config = config.model_copy(update={"model": config.model.model_copy(update={"uri": gemma_270m.as_uri()})})
    rows, state = ListedRows([30, 24, 18, 27, 32, 21], vocabulary=200_000), tmp_path / "state"

    def trained(backend: Any, start: Path | None) -> list[float]:
        watcher = Watcher(lambda step: backend.snapshot()(state) if step.number == 3 else None)
        backend.train(rows, len(rows.items), 5, start, watcher)
        return [step.loss for step in watcher.steps]

    first = trained(loaded(config), None)

    def goes_on(backend: Any) -> None:
        assert trained(backend, state) == first[3:]

    compared(loaded(config), config, [2, *range(1000, 1047)], tmp_path, goes_on)
