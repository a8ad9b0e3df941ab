"""Secrets stay in the process: nothing that a run leaves, shows or logs holds the planted ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_cli.local.session import FOLDER
from tests.trainer.conftest import write_tiny_model

pytestmark = pytest.mark.slow
PLANTED = {"HF_TOKEN": "hf_PLANTEDdoNotShow1", "WANDB_API_KEY": "PLANTEDdoNotShow2", "TEAM_KEY": "PLANTEDdoNotShow3"}


def left_behind(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of all that there is below the folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()


def run(folder: Path, spec: dict[str, Any]) -> tuple[int, str]:
    document = {"apiVersion": "gemmatune.dev/v1alpha1", "kind": "GemmaFineTune", "metadata": {"name": "quotes"}}
    (folder / "run.yaml").write_text(yaml.safe_dump({**document, "spec": spec}))
    done = subprocess.run(
        [sys.executable, "-m", "gemmatune_cli", "run", str(folder / "run.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, **PLANTED, "OMP_NUM_THREADS": "1", "GEMMATUNE_LOG_LEVEL": "debug"},
        check=False,
        timeout=500,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_nothing_that_a_run_leaves_holds_a_secret(ends: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", "3")
    rows = "".join(json.dumps({"text": f"Be yourself {number}."}) + "\n" for number in range(24))
    (tmp_path / "rows.jsonl").write_text(rows if ends == "well" else '{"other": 1}\n')
    planted = [{"name": name, "valueFrom": {"secretKeyRef": {"name": "keys", "key": name}}} for name in PLANTED]
    code, shown = run(
        tmp_path,
        {
            "model": {"uri": (tmp_path / "model").as_uri()},
            "dataset": {
                "uri": (tmp_path / "rows.jsonl").as_uri(),
                "text": {"template": "{text} $(HF_TOKEN) $TEAM_KEY"},
                "maxLength": 64,
            },
            "lora": {"rank": 2},
            "training": {"maxSteps": 2, "globalBatchSize": 2, "precision": "fp32"},
            "samples": {"prompts": ["$(HF_TOKEN) ${TEAM_KEY}"], "maxNewTokens": 2},
            "tracking": {"tensorboard": True, "wandb": {"project": "quotes"}},
            "output": {"uri": (tmp_path / "out").as_uri()},
            "accelerator": {"cpu": {}},
            "pod": {"env": planted},
        },
    )
    assert code == (0 if ends == "well" else 1), shown
    files = dict(left_behind(tmp_path / "out"))
    assert any(f"/{FOLDER}/jobs/" in name and name.endswith("/log") for name in files), "the logs are among them"
    assert (str(tmp_path / "out/report/report.html") in files) == (ends == "well")
    found = [
        f"{variable} in {name}"
        for variable, value in PLANTED.items()
        for name, content in [*files.items(), ("the terminal", shown.encode())]
        if value.encode() in content
    ]
    assert found == []
