"""`gft run` with the real trainer on a tiny Gemma 3: whatever interrupts it, the adapter is the same to the bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from gemmatune_cli.local.session import FOLDER
from gemmatune_cli.local.store import Store
from tests.support.wait import wait_for
from tests.trainer.conftest import write_quotes

STEPS = 200
PATIENCE = 240.0

pytestmark = pytest.mark.slow


@dataclass
class Run:
    """One resource and its `gft run`s."""

    folder: Path
    model: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def file(self) -> Path:
        return self.folder / "run.yaml"

    def write(self, **changes: Any) -> None:
        spec: dict[str, Any] = {
            "model": {"uri": self.model.as_uri()},
            "dataset": {
                "uri": write_quotes(self.folder / "quotes.jsonl").as_uri(),
                "text": {"template": "Quote: {text}\nAuthor: {from}"},
                "maxLength": 128,
            },
            "lora": {"rank": 4, "dropout": 0.1},
            "training": {
                "maxSteps": STEPS,
                "globalBatchSize": 4,
                "microBatchSize": 2,
                "precision": "fp32",
                "learningRate": 5e-3,
            },
            "checkpoint": {"everySteps": 20},
            "samples": {"prompts": ["Quote: Hello"], "maxNewTokens": 4},
            "output": {"uri": self.output.as_uri()},
            "accelerator": {"cpu": {}},
        }
        spec |= changes
        document = {"apiVersion": "gemmatune.dev/v1alpha1", "kind": "GemmaFineTune", "metadata": {"name": "quotes"}}
        self.file.write_text(yaml.safe_dump({**document, "spec": spec}))

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gemmatune_cli", "run", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # on a tiny model, threads only wait for each other
            start_new_session=True,
        )

    def finish(self) -> str:
        code, output = end(self.start())
        assert code == 0, output + self.logs()
        return output

    def logs(self) -> str:
        return "".join(f"\n{path}:\n{path.read_text()}" for path in self.output.glob(f"{FOLDER}/jobs/*/log"))

    def reached(self, step: int) -> None:
        path = self.output / FOLDER / "status.json"
        wait_for(
            lambda: path.exists() and json.loads(path.read_text()).get("progress", {}).get("step", 0) >= step,
            f"step {step}",
            seconds=PATIENCE,
            detail=self.logs,
        )

    def trainers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("GEMMATUNE_STATUS_FILE") == str(self.output / FOLDER / "status.json")
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = Store(self.output / FOLDER / "store.json").list("GemmaFineTune")[0]["status"]
        return status

    @property
    def adapter(self) -> bytes:
        return (self.output / "adapter" / "adapter_model.safetensors").read_bytes()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


@pytest.fixture
def run(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Iterator[Run]:
    run = Run(tmp_path, tiny_model("3"))
    run.write()
    yield run
    for process in run.trainers():
        process.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Run:
    """A run that nothing disturbed."""
    run = Run(tmp_path_factory.mktemp("undisturbed"), tiny_model("3"))
    run.write()
    run.finish()
    return run


def test_a_run_leaves_adapter_report_manifest_and_the_samples_in_the_status(undisturbed: Run) -> None:
    status = undisturbed.status
    assert status["phase"] == "Succeeded"
    assert status["progress"]["stepText"] == f"{STEPS}/{STEPS}"
    assert status["progress"]["loss"] < status["progress"]["historyLoss"][0]
    assert status["data"]["rows"] == 24
    assert status["plan"]["trainableParameters"] > 0
    (sample,) = status["samples"]
    assert sample["prompt"] == "Quote: Hello"
    assert sample["before"]
    assert sample["after"]
    for uri in (status["artifacts"][name] for name in ("adapter", "report", "manifest")):
        assert Path(uri.removeprefix("file://")).exists(), uri
    assert json.loads((undisturbed.output / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_a_killed_gft_and_a_ctrl_c_later_the_adapter_is_the_same_to_the_bit(run: Run, undisturbed: Run) -> None:
    first = run.start()
    run.reached(5)
    first.kill()
    first.communicate()
    (trainer,) = run.trainers()

    seen = run.status["progress"]["step"]
    second = run.start()
    wait_for(lambda: run.status["progress"]["step"] > seen, "the second gft's look", seconds=PATIENCE)
    assert [other.pid for other in run.trainers()] == [trainer.pid], "it is adopted, and no second one is started"
    second.send_signal(signal.SIGINT)
    code, output = end(second)
    assert code == 130, output + run.logs()
    saved = re.search(r"saved at step (\d+)", output)
    assert saved, output
    assert 5 <= int(saved[1]) < STEPS
    assert run.trainers() == []

    run.finish()
    assert [attempt["reason"] for attempt in run.status["attempts"]] == ["Suspended", "Completed"]
    assert f'"from_step": {saved[1]}' in run.logs()
    assert run.adapter == undisturbed.adapter


def test_a_merge_follows_and_plain_transformers_reads_it(run: Run) -> None:
    run.write(
        output={"uri": run.output.as_uri(), "merge": True},
        training={"maxSteps": 20, "globalBatchSize": 4, "precision": "bf16", "learningRate": 5e-3},
    )
    output = run.finish()
    status = run.status
    assert (status["phase"], status["job"]) == ("Succeeded", "quotes-m1")
    assert "Merging" in output
    assert re.search(r"base [0-9.]+, with adapter [0-9.]+, merged [0-9.]+\.", status["message"])
    merged = run.output / "merged"
    assert status["artifacts"]["merged"] == merged.as_uri()
    assert status["artifacts"]["adapter"] == (run.output / "adapter").as_uri()
    assert status["progress"]["stepText"] == "20/20"
    verified = json.loads((merged / "manifest.json").read_text())["verified"]
    assert verified["merged_loss"] < verified["base_loss"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = tokenizer("Quote: Hello", return_tensors="pt").input_ids
    answer = AutoModelForCausalLM.from_pretrained(merged).generate(ids, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > ids.shape[1]
