"""What a run of backend keras begins with: a seed of any size, the precision of its products, and its devices."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ENV_RUN, ENV_TERMINATION_LOG, ExitCode
from gemmatune_trainer import backends
from gemmatune_trainer.backends import keras_devices
from gemmatune_trainer.errors import AcceleratorMissing
from gemmatune_trainer.models import fetch
from gemmatune_trainer.prepare import prepare
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag
from tests.keras.conftest import MakeConfig
from tests.support.otherrank import OtherToldToStop

LARGEST = 2**31 - 1
"""The largest training.seed that a spec may have."""


def test_every_seed_of_a_spec_begins_an_adapter_of_its_own(make_config: MakeConfig) -> None:
    """A small seed as in earlier versions, to the bit: a run that is created again begins alike."""
    found = []
    for seed in (42, LARGEST):
        config = make_config("2", seed=seed, target_modules=["q_proj"])
        backend = backends.make(config, fetch(config.model, weights=True), StopFlag(), Ranks())
        backend.load()
        found.append([np.asarray(item.layer.lora_kernel_a) for item in backend._adapted])  # type: ignore[attr-defined]
    for index, value in enumerate(found[0]):
        assert (value == np.asarray(keras.initializers.HeUniform(seed=42 * 1_000_003 + index)(value.shape))).all()
    assert (found[0][0] != found[1][0]).any()


@pytest.mark.parametrize(("precision", "option"), [("fp32", "highest"), ("bf16", None)])
def test_products_of_a_run_in_fp32_are_in_fp32(make_config: MakeConfig, precision: str, option: str | None) -> None:
    """A TPU would make them in bf16. What is compiled says it, too."""
    config = make_config("2", precision=precision)
    backends.make(config, fetch(config.model, weights=True), StopFlag(), Ranks())
    assert jax.config.jax_default_matmul_precision == option
    compiled = jax.jit(lambda a: a @ a).lower(jnp.ones((4, 4))).as_text()
    assert ("HIGHEST" in compiled) == (precision == "fp32")


def test_a_tpu_that_does_not_start_is_a_fault_of_the_node(make_config: MakeConfig, tmp_path: Path) -> None:
    """The pod's environment names the TPU; the attempt ends as a crash, which the operator tries again and counts."""
    config = make_config(mesh=(4, 1))
    prepare(config, StopFlag())
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "tpu,cpu",
        ENV_RUN: config.model_copy(update={"device": "tpu"}).to_env(),
        ENV_TERMINATION_LOG: str(tmp_path / "termination"),
    }
    command = [sys.executable, "-m", "gemmatune_trainer", "train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CRASHED, done.stderr[-4000:]
    message = from_text((tmp_path / "termination").read_text(), TerminationMessage)
    assert message is not None
    assert message.message.startswith("the node's TPU does not start: RuntimeError: Unable to initialize backend 'tpu'")
    assert "look at the node's device plugin" in message.remedy


@pytest.fixture
def platforms() -> Iterator[Callable[[str | None], None]]:
    """Sets what JAX_PLATFORMS would; JAX has read it long ago."""
    before = jax.config.jax_platforms
    yield lambda value: jax.config.update("jax_platforms", value)
    jax.config.update("jax_platforms", before)


def test_the_cpu_is_not_taken_for_a_tpu(platforms: Callable[[str | None], None]) -> None:
    """JAX without a word on platforms takes what starts; named, virtual devices may stand for chips."""
    platforms("cpu")
    keras_devices.check("tpu")
    platforms(None)
    keras_devices.check("cpu")
    with pytest.raises(AcceleratorMissing, match="for a TPU, and JAX finds none on this node, only 8 x cpu"):
        keras_devices.check("tpu")


def test_an_answer_that_another_rank_cuts_short_is_told(make_config: MakeConfig) -> None:
    """Rank 0's flag is up then: an answer of one token is not taken for the model's."""
    config, stop = make_config("2"), StopFlag()
    backend = backends.make(config, fetch(config.model, weights=True), stop, OtherToldToStop(size=2))
    backend.load()
    assert len(backend.generate([2, 110, 111], 8, [])) == 1
    assert stop.raised
