"""Secrets stay in the process: nothing that a run leaves, shows or logs holds the planted ones.

On a cluster that is looked at in tests/e2e/test_end_to_end.py: its status, Events, Jobs, pods and logs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_cli.local.session import FOLDER
from tests.support.hub import Hub
from tests.support.mlflowdouble import MlflowServer
from tests.support.planted import PLANTED, turned_up
from tests.trainer.conftest import write_tiny_model

pytestmark = pytest.mark.slow
ROWS = "".join(json.dumps({"text": f"Be yourself {number}."}) + "\n" for number in range(24))
OTHER_ROWS = '{"other": 1}\n'
ENDS = {"well": 0, "badly": 1, "refused": 1}


def left_behind(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of all that there is below the folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()


def run(folder: Path, spec: dict[str, Any], environment: Mapping[str, str]) -> tuple[int, str]:
    document = {"apiVersion": "gemmatune.dev/v1alpha1", "kind": "GemmaFineTune", "metadata": {"name": "quotes"}}
    (folder / "run.yaml").write_text(yaml.safe_dump({**document, "spec": spec}))
    done = subprocess.run(
        [sys.executable, "-m", "gemmatune_cli", "run", str(folder / "run.yaml")],
        capture_output=True,
        text=True,
        env={**os.environ, **PLANTED, **environment, "OMP_NUM_THREADS": "1", "GEMMATUNE_LOG_LEVEL": "debug"},
        check=False,
        timeout=500,
    )
    return done.returncode, done.stdout + done.stderr


def spec_of(mlflow: str, output: str) -> dict[str, Any]:
    """A run that shows a token to the hub, to the tracker and to whatever looks at its own variables."""
    own = {"name": "TEAM_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "TEAM_KEY"}}}
    return {
        "model": {"uri": "hf://org/tiny", "secretRef": {"name": "hub"}},
        "dataset": {
            "uri": "hf://org/quotes",
            "secretRef": {"name": "hub"},
            "text": {"template": "{text} $(HF_TOKEN) $TEAM_KEY"},
            "maxLength": 64,
        },
        "lora": {"rank": 2},
        "training": {"maxSteps": 2, "globalBatchSize": 2, "precision": "fp32", "logEverySteps": 1},
        "samples": {"prompts": ["$(HF_TOKEN) ${TEAM_KEY}"], "maxNewTokens": 2},
        "tracking": {
            "tensorboard": True,
            "wandb": {"project": "quotes"},
            "mlflow": {"uri": mlflow, "secretRef": {"name": "mlflow"}},
        },
        "output": {"uri": output},
        "accelerator": {"cpu": {}},
        "pod": {"env": [own]},
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ends", ENDS)
def test_nothing_that_a_run_leaves_holds_a_secret(ends: str, tmp_path: Path) -> None:
    """Its tokens are really used: by the hub of model and rows, which may refuse them, and by the tracker.

    W&B's key is looked for in tests/trainer/test_tracking.py: a server that refuses it costs a run 45 s.
    """
    write_tiny_model(tmp_path / "model", "3")
    model = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with Hub("hf_another" if ends == "refused" else PLANTED["HF_TOKEN"]) as hub:
        hub.add("models", "org/tiny", model, access="private")
        hub.add("datasets", "org/quotes", {"rows.jsonl": OTHER_ROWS if ends == "badly" else ROWS}, access="private")
        with MlflowServer(PLANTED["MLFLOW_TRACKING_TOKEN"]) as mlflow:
            spec = spec_of(mlflow.endpoint, (tmp_path / "out").as_uri())
            home = {"HF_HOME": str(tmp_path / "home"), "GEMMATUNE_CACHE": str(tmp_path / "cache")}
            code, shown = run(tmp_path, spec, {**hub.environment(), **home})
    assert code == ENDS[ends], shown
    assert PLANTED["HF_TOKEN"] in {token for _, _, token in hub.requests}
    assert ("AccessDenied" in shown) == (ends == "refused"), shown
    if ends == "well":
        assert {token for _, token in mlflow.requests} == {PLANTED["MLFLOW_TRACKING_TOKEN"]}
        assert {metric["key"] for metric in mlflow.metrics} >= {"train/loss"}
    files = dict(left_behind(tmp_path / "out", tmp_path / "home", tmp_path / "cache"))
    assert any(f"/{FOLDER}/jobs/" in name and name.endswith("/log") for name in files), "the logs are among them"
    assert (str(tmp_path / "out/report/report.html") in files) == (ends == "well")
    assert turned_up([*files.items(), ("the terminal", shown.encode())]) == []
