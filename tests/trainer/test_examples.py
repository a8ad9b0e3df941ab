"""Every example is run in miniature on this machine: its format, method, optimizer and samples, on a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import catalog, defaults, validate, yamlio
from gemmatune_api.names import API_VERSION, ENV_CACHE, KIND, ExitCode
from gemmatune_api.runconfig import RunConfig, RunIdentity, build
from gemmatune_cli.planning import planned
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.trainer.conftest import write_quotes

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.yaml") if not re.search("backend: (xla|keras)", path.read_text()))
"""Those of the other backends are run by tests/xla and tests/keras, in their environments."""
STEPS = 2
LENGTH = 256

pytestmark = pytest.mark.slow


def rows_for(dataset: dict[str, Any], folder: Path) -> Path:
    """Rows with the columns that the example's format asks for."""
    quotes = [json.loads(line) for line in write_quotes(folder / "quotes.jsonl").read_text().splitlines()]
    if "text" in dataset:
        rows: list[dict[str, Any]] = [{"quote": row["text"], "author": row["from"]} for row in quotes]
    elif "instruct" in dataset:
        rows = [{"instruction": "Who said it?", "input": row["text"], "output": row["from"]} for row in quotes]
    else:
        asked = [{"role": "user", "content": "Who said it?"}]
        rows = [{"messages": [*asked, {"role": "assistant", "content": row["from"]}]} for row in quotes]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def miniature(spec: dict[str, Any], model: Path, folder: Path) -> RunConfig:
    """What the trainer is told of the example, with all that costs time or needs hardware made small."""
    spec["model"] = {"uri": model.as_uri()}
    dataset = spec["dataset"]
    dataset |= {"uri": rows_for(dataset, folder).as_uri(), "maxLength": LENGTH}
    training = {name: value for name, value in spec.get("training", {}).items() if name != "epochs"}
    spec["training"] = {**training, "maxSteps": STEPS, "warmupSteps": 1, "globalBatchSize": 4, "microBatchSize": 2}
    spec["output"] = {"uri": (folder / "out").as_uri()}
    spec["accelerator"] = {"cpu": {}}
    spec.pop("provisioning", None)
    if "lora" not in spec:
        spec.setdefault("qlora", {})  # what a GPU has by default
    if str(training.get("optimizer", "")).startswith("paged_"):
        spec["training"]["optimizer"] = "adamw_bnb_8bit"  # the same without pages, which only a GPU has
    if "samples" in spec:
        spec["samples"]["maxNewTokens"] = 3
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "small"}, "spec": spec}
    small = planned(validate.parse(document))
    return build(
        defaults.resolve(small.resource.spec),
        RunIdentity(name="small", namespace="default", uid="uid-1"),
        1,
        small.plan,
    )


def assert_trackers(report: Path, tracking: dict[str, Any], run: TrainerProcess) -> None:
    """What the trackers of an example left: without a key, Weights & Biases is offline."""
    assert not run.events("tracker"), "no tracker had trouble"
    assert len(list(report.glob("tensorboard/events.*"))) == bool(tracking.get("tensorboard"))
    offline = [file.stat().st_size for file in report.glob("wandb/offline-run-*/run-uid-1.wandb")]
    assert len(offline) == ("wandb" in tracking)
    assert all(size > 1000 for size in offline)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_in_miniature(
    file: Path,
    tiny_model: Callable[[str], Path],
    trainer_host: TrainerHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (document,) = yamlio.load_all(file.read_text(encoding="utf-8"))
    spec = document["spec"]
    known = catalog.by_uri(spec["model"]["uri"])
    generation = str(known.generation) if known else "3"
    if known and known.multimodal:
        generation += "-images"  # the class of the published checkpoint
    config = miniature(spec, tiny_model(generation), tmp_path)
    for role in ("prepare", "train"):
        run = trainer_host.run(role, config, tmp_path / role)
        assert run.poll() == ExitCode.DONE, run.log()[-4000:]
    status = run.status
    assert status["progress"]["stepText"] == f"{STEPS}/{STEPS}"
    assert [sample["prompt"] for sample in status.get("samples", [])] == spec.get("samples", {}).get("prompts", [])
    adapter = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert adapter["r"] == config.method.rank
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["verified"]["delta"] > 0
    assert (tmp_path / "out/report/report.html").exists()
    assert bool(manifest["evaluations"]) == ("evalFraction" in spec["dataset"])
    assert_trackers(tmp_path / "out/report", spec.get("tracking", {}), run)
