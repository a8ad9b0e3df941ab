"""What the tests of backend keras share: tiny models, configurations, and hosts of trainer processes."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"  # before a test's module imports Keras

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import ENV_CACHE
from gemmatune_api.runconfig import RunConfig, RunMesh
from gemmatune_cli.local.environments import python_of
from tests.support.tinymodels import write_model
from tests.support.trainerhost import TrainerHost
from tests.trainer.conftest import run_config, write_quotes

DEVICES = 8
MakeConfig = Callable[..., RunConfig]


def device_environment(devices: int = DEVICES) -> dict[str, str]:
    """What a pod of this backend sets for virtual devices on a CPU; compiled quickly, not well."""
    return {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


@pytest.fixture(scope="session", autouse=True)
def _devices() -> Iterator[None]:
    """The environment of this process and of all that it starts; before JAX looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in device_environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model("3")` is the folder of a random Gemma 3 with the stand-in vocabulary, written once."""
    folders: dict[str, Path] = {}

    def make(generation: str) -> Path:
        if generation not in folders:
            folders[generation] = write_model(tmp_path_factory.mktemp(f"gemma{generation}"), generation)
        return folders[generation]

    return make


@pytest.fixture(scope="session")
def trainer_host() -> Iterator[TrainerHost]:
    """Starts trainer processes without paying for their imports each time."""
    with TrainerHost() as host:
        yield host


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all runs: what is compiled once is there for the others."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_config(
    tiny_model: Callable[[str], Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> MakeConfig:
    """`make_config("2", mesh=(2, 4), max_steps=3)`: a run of a tiny model on quotes, on 8 virtual devices."""
    monkeypatch.setenv(ENV_CACHE, str(cache))

    def make(generation: str = "3", mesh: tuple[int, int] = (2, 4), **changes: Any) -> RunConfig:
        data = write_quotes(tmp_path / "quotes.jsonl")
        config = run_config(tiny_model(generation), data, tmp_path / "out", **changes)
        return config.model_copy(update={"backend": "keras", "mesh": RunMesh(data=mesh[0], model=mesh[1])})

    return make


def torch_python() -> Path:
    """The Python of the torch environment, beside this one."""
    found = python_of("torch")
    assert found is not None, "make setup installs it"
    return found
