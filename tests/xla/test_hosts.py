"""Two processes of backend xla, as two hosts of a slice start them: what they tell each other, and who writes.

The CPU's runtime knows of one process alone, so that each has a mesh of its own and computes the whole: what is real
here is all that travels between hosts beside the mesh (rows, state of a checkpoint, the result), not its collectives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.launcher import free_port
from tests.support.soak import only_in_soak
from tests.trainer.conftest import write_quotes


def start(role: str, config: RunConfig, folder: Path, **told: str) -> subprocess.Popen[str]:
    folder.mkdir(parents=True)
    environment = {
        **os.environ,
        ENV_RUN: config.to_env(),
        ENV_CACHE: str(folder / "cache"),
        ENV_TERMINATION_LOG: str(folder / "termination"),
        ENV_STATUS_FILE: str(folder / "status.json"),
        **told,
    }
    command = [sys.executable, "-m", "gemmatune_trainer", role]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def trained(config: RunConfig, folder: Path, size: int = 2) -> dict[str, object]:
    """An attempt by so many processes, to its end; the tensors of the result."""
    meet = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_RANK": "0"}
    hosts = [
        start("train", config, folder / str(rank), **({"RANK": str(rank), **meet} if size > 1 else {}))
        for rank in range(size)
    ]
    for host in hosts:
        _, told = host.communicate()
        assert host.returncode == 0, told[-4000:]
    for rank in range(1, size):
        assert not (folder / str(rank) / "status.json").exists(), "rank 0 alone tells the story"
        assert not list((folder / str(rank) / "cache").rglob("*.safetensors")), "and writes"
    (file,) = output(config).glob("[am]*/*model.safetensors")
    return dict(load_file(file))


def output(config: RunConfig) -> Path:
    return Path(config.output.uri.removeprefix("file://"))


@only_in_soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_train_and_resume(make_config: Callable[..., RunConfig], tmp_path: Path, kind: str) -> None:
    """The same bits as by one; and again, where two go on from the checkpoint of step 2, which rank 0 alone reads."""
    write_quotes(tmp_path / "rows.jsonl")
    changes = {"kind": kind, "prompts": [], **({"learning_rate": 1e-3} if kind == "full" else {})}
    config = make_config("3", max_steps=4, every_steps=2, **changes)
    prepared = start("prepare", config, tmp_path / "prepare")
    assert prepared.wait() == 0
    alone = config.model_copy(update={"output": config.output.model_copy(update={"uri": f"{config.output.uri}-alone"})})
    shutil.copytree(output(config), output(alone))
    wanted = trained(alone, tmp_path / "alone", size=1)

    def equal(found: dict[str, object]) -> bool:
        return found.keys() == wanted.keys() and all((found[name] == wanted[name]).all() for name in wanted)  # type: ignore[attr-defined]

    assert equal(trained(config, tmp_path / "two"))
    for gone in ("checkpoints/step-00000004", "model" if kind == "full" else "adapter"):
        shutil.rmtree(output(config) / gone)
    (output(config) / "manifest.json").unlink()
    assert equal(trained(config.model_copy(update={"attempt": 2}), tmp_path / "again"))
