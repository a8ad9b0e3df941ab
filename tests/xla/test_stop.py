"""SIGTERM while a step is compiled: the process ends in time, with its own exit code and the checkpoint that counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_TERMINATION_LOG, ExitCode
from gemmatune_api.runconfig import RunConfig
from tests.support.tinymodels import write_model
from tests.support.wait import wait_for
from tests.trainer.conftest import write_quotes

LAYERS = 48
IN_TIME = 15.0


def start(role: str, config: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "XLA_FLAGS": "",  # compiled well, which takes long: that is wanted here
        ENV_RUN: config.to_env(),
        ENV_CACHE: str(folder / "cache"),
        ENV_TERMINATION_LOG: str(folder / "termination"),
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "gemmatune_trainer", role], env=environment, stderr=log)


@pytest.mark.timeout(300)
def test_a_signal_amid_the_first_compilation(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Nothing is trained: there is nothing to wait for."""
    model = write_model(tmp_path / "deep", "1", num_hidden_layers=LAYERS)
    write_quotes(tmp_path / "rows.jsonl")
    config = make_config("1", prompts=[], gradient_checkpointing=True)
    config = config.model_copy(update={"model": config.model.model_copy(update={"uri": model.as_uri()})})
    assert start("prepare", config, tmp_path).wait() == 0
    process = start("train", config, tmp_path)

    def told(event: str) -> bool:
        lines = (tmp_path / "log").read_text().splitlines()
        return any(json.loads(line)["event"] == event for line in lines if line.startswith("{"))

    wait_for(lambda: told("compiling"), "the first step", seconds=200, detail=(tmp_path / "log").read_text)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == ExitCode.INTERRUPTED, (tmp_path / "log").read_text()
    assert time.monotonic() - sent < IN_TIME
    found = from_text((tmp_path / "termination").read_text(), TerminationMessage)
    assert found is not None
    assert found.message == ("SIGTERM could not be heard while step 1 was compiled or computed: no checkpoint is saved")
