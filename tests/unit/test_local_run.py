"""`gft run` as a process, with a trainer that only keeps to the contract: starts, signals, resumes, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
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

from gemmatune_cli.local.session import run_folder
from gemmatune_cli.local.store import Store
from tests.support.wait import wait_for

STAND_IN = Path(__file__).parent / "contract_trainer"
"""A folder with a module gemmatune_trainer that trains nothing."""


@dataclass
class Gft:
    """Calls `gft run` on one resource."""

    folder: Path
    environment: dict[str, str]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def file(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def state(self) -> Path:
        return run_folder(self.output.as_uri())

    def write(self, name: str = "quotes", **changes: Any) -> None:
        spec: dict[str, Any] = {
            "model": {"uri": "file:///models/gemma"},
            "dataset": {"uri": "file:///data/x.jsonl", "text": {"template": "{text}"}},
            "training": {"maxSteps": 12, "globalBatchSize": 4},
            "output": {"uri": self.output.as_uri()},
            "accelerator": {"cpu": {}},
        }
        spec |= changes
        document = {"apiVersion": "gemmatune.dev/v1alpha1", "kind": "GemmaFineTune", "spec": spec}
        self.file.write_text(yaml.safe_dump({**document, "metadata": {"name": name}}))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gemmatune_cli", "run", str(self.file)],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **environment: str) -> tuple[int, str]:
        return end(self.start(**environment))

    @property
    def resource(self) -> dict[str, Any]:
        return Store(self.state / "store.json").list("GemmaFineTune")[0]

    @property
    def status(self) -> dict[str, Any]:
        return self.resource.get("status") or {}

    def reached(self, step: int) -> Callable[[], bool]:
        path = self.state / "status.json"
        return lambda: path.exists() and json.loads(path.read_text())["progress"]["step"] >= step

    def trainers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("GEMMATUNE_STATUS_FILE") == str(self.state / "status.json")
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.fixture
def gft(tmp_path: Path) -> Iterator[Gft]:
    path = os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")])
    gft = Gft(tmp_path, {**os.environ, "PYTHONPATH": path, "XDG_STATE_HOME": str(tmp_path / "state")})
    gft.write()
    yield gft
    for process in gft.trainers():
        process.kill()


def test_a_run_succeeds_and_says_where_its_results_are(gft: Gft) -> None:
    code, output = gft.run()
    assert code == 0, output
    assert "Succeeded" in output
    assert "step 12/12" in output
    assert f"adapter  {gft.output.as_uri()}/adapter" in output
    assert output.count("The adapter is written and verified") == 2, "once as it happens, once as the end of it all"
    logged = [json.loads(line) for line in (gft.state / "operator.log").read_text().splitlines()]
    assert any(line.get("after") == "Succeeded" for line in logged), "what the operator logs is kept beside"
    assert gft.status["phase"] == "Succeeded"
    assert [attempt["reason"] for attempt in gft.status["attempts"]] == ["Completed"]
    assert not (gft.state / "cache").exists()
    assert gft.trainers() == []


def test_a_finished_run_says_so_and_starts_nothing(gft: Gft) -> None:
    assert gft.run()[0] == 0
    before = gft.resource
    code, output = gft.run()
    assert code == 0
    assert "has finished already" in output
    assert f"adapter  {gft.output.as_uri()}/adapter" in output
    assert gft.status["counters"]["attempts"] == 1
    assert before["status"] == gft.resource["status"]
    (gft.output / "manifest.json").unlink()
    code, output = gft.run()
    assert code == 1
    assert f"{gft.output / 'manifest.json'} is gone" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_saves_a_checkpoint_and_the_same_command_goes_on(gft: Gft, number: signal.Signals) -> None:
    process = gft.start(TRAINER_STEP_SECONDS="1")
    wait_for(gft.reached(2), "step 2")
    process.send_signal(number)
    code, output = end(process)
    assert code == 130, output
    saved = re.search(r"saved at step (\d+): (\S+)", output)
    assert saved, output
    assert f"gft run {gft.file}" in output
    assert gft.trainers() == []
    assert gft.status["phase"] == "Suspended"
    uid = gft.resource["metadata"]["uid"]
    code, output = gft.run()
    assert code == 0, output
    assert f"resumed from {saved[1]}" in (gft.state / "jobs" / "quotes-t2" / "log").read_text()
    assert gft.resource["metadata"]["uid"] == uid
    assert gft.status["counters"] == {"attempts": 2, "retries": 0, "preemptions": 0, "outOfMemory": 0, "stalls": 0}


def test_ctrl_c_twice_does_not_wait_for_a_trainer_that_does_not_answer(gft: Gft) -> None:
    process = gft.start(TRAINER_STEP_SECONDS="1", TRAINER_DEAF="1")
    wait_for(gft.reached(2), "step 2")
    process.send_signal(signal.SIGINT)
    wait_for(lambda: gft.resource["spec"].get("suspend"), "the first Ctrl-C")
    process.send_signal(signal.SIGINT)
    code, output = end(process)
    assert code == 130, output
    assert gft.trainers() == []


def test_a_killed_gft_leaves_its_trainer_and_the_next_one_adopts_it(gft: Gft) -> None:
    process = gft.start(TRAINER_STEP_SECONDS="0.6")
    wait_for(gft.reached(2), "step 2")
    process.kill()
    process.communicate()
    (trainer,) = gft.trainers()
    second = gft.start()
    wait_for(gft.reached(8), "step 8")
    assert [other.pid for other in gft.trainers()] == [trainer.pid]
    code, output = end(second)
    assert code == 0, output
    assert gft.status["counters"]["attempts"] == 1
    assert (gft.state / "jobs" / "quotes-t1" / "log").read_text().count("started") == 1


def test_a_trainer_that_was_killed_with_its_gft_is_a_counted_retry(gft: Gft) -> None:
    process = gft.start(TRAINER_STEP_SECONDS="1")
    wait_for(gft.reached(2), "step 2")
    process.kill()
    process.communicate()
    for trainer in gft.trainers():
        trainer.kill()
    code, output = gft.run()
    assert code == 0, output
    assert [attempt["reason"] for attempt in gft.status["attempts"]] == ["Killed", "Completed"]
    assert gft.status["counters"]["retries"] == 1


def test_a_trainer_that_ended_while_no_gft_ran_is_taken_for_what_it_left(gft: Gft) -> None:
    process = gft.start(TRAINER_STEP_SECONDS="0.05")
    wait_for(gft.reached(2), "step 2")
    process.kill()
    process.communicate()
    wait_for(lambda: not gft.trainers(), "the trainer's end")
    code, output = gft.run()
    assert code == 0, output
    assert gft.status["counters"]["attempts"] == 1


def test_a_second_gft_at_the_same_time_is_refused(gft: Gft) -> None:
    first = gft.start(TRAINER_STEP_SECONDS="1")
    wait_for(gft.reached(1), "step 1")
    code, output = gft.run()
    assert code == 1
    assert f"another gft (process {first.pid})" in output
    first.send_signal(signal.SIGTERM)
    assert end(first)[0] == 130


def test_a_crashing_trainer_is_tried_again_and_ends_as_failed_with_its_log(gft: Gft) -> None:
    gft.write(limits={"maxRetries": 1})
    code, output = gft.run(TRAINER_EXIT="31", TRAINER_EXIT_AT="3")
    assert code == 1, output
    assert "Stalled" in output
    assert str(gft.state / "jobs" / "quotes-t2" / "log") in output
    assert gft.status["counters"]["retries"] == 1
    code, output = gft.run()
    assert code == 0, output
    assert gft.status["counters"]["attempts"] == 3


def test_the_remedy_of_a_refused_access_is_one_for_this_machine(gft: Gft) -> None:
    """There is no resource to annotate here: the same command tries again."""
    code, output = gft.run(PREPARE_EXIT="11")
    assert code == 1
    assert "AccessDenied" in output
    assert "annotation" not in output
    assert "Then start `gft run` again." in gft.status["remedy"]
    assert gft.run()[0] == 0


def test_a_preparation_that_fails_can_be_corrected(gft: Gft) -> None:
    code, output = gft.run(PREPARE_EXIT="12")
    assert code == 1
    assert "DataInvalid" in output
    assert "To try again" in output
    gft.write(dataset={"uri": "file:///data/y.jsonl", "text": {"template": "{text}"}})
    code, output = gft.run()
    assert code == 0, output


def test_a_preparation_that_failed_by_its_data_is_tried_again_with_the_same_spec(gft: Gft) -> None:
    assert gft.run(PREPARE_EXIT="12")[0] == 1
    code, output = gft.run()
    assert code == 0, output


def stop_at(gft: Gft, step: int) -> None:
    process = gft.start(TRAINER_STEP_SECONDS="1")
    wait_for(gft.reached(step), f"step {step}")
    process.send_signal(signal.SIGINT)
    assert end(process)[0] == 130


def test_a_fixed_field_is_refused_by_name_once_an_attempt_exists(gft: Gft) -> None:
    stop_at(gft, 1)
    gft.write(lora={"rank": 4}, training={"maxSteps": 12, "globalBatchSize": 4, "learningRate": 0.1})
    code, output = gft.run()
    assert code == 1
    assert "spec.lora is fixed once the first attempt exists" in output.replace(":", " ").replace("  ", " ")
    assert "spec.training.learningRate" in output
    gft.write(limits={"maxRetries": 7}, checkpoint={"everySteps": 2})
    code, output = gft.run()
    assert code == 0, output


def test_another_run_in_the_same_output_is_refused_unless_it_overwrites(gft: Gft) -> None:
    assert gft.run()[0] == 0
    gft.write(name="other")
    code, output = gft.run()
    assert code == 1
    assert "holds the run default/quotes" in output
    gft.write(name="other", output={"uri": gft.output.as_uri(), "overwrite": True})
    code, output = gft.run()
    assert code == 0, output
    assert gft.resource["metadata"]["name"] == "other"


def test_a_trainer_of_a_run_that_was_deleted_is_stopped_before_the_next_one_starts(gft: Gft) -> None:
    process = gft.start(TRAINER_STEP_SECONDS="1")
    wait_for(gft.reached(2), "step 2")
    process.kill()
    process.communicate()
    (orphan,) = gft.trainers()
    shutil.rmtree(gft.output)
    gft.write(name="other")
    code, output = gft.run()
    assert code == 0, output
    assert f"process {orphan.pid}): it is stopped" in output
    assert gft.status["counters"]["attempts"] == 1


def test_a_missing_secret_is_named_before_anything_trains(gft: Gft) -> None:
    gft.write(model={"uri": "hf://google/gemma-3-270m", "secretRef": {"name": "hub"}})
    gft.environment.pop("HF_TOKEN", None)
    code, output = gft.run()
    assert code == 1
    assert "HF_TOKEN" in output
    assert "Traceback" not in output
    code, output = gft.run(HF_TOKEN="hf_x")
    assert code == 0, output


def test_what_this_machine_cannot_do_is_refused(gft: Gft) -> None:
    if Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("this machine has a GPU")
    gft.write(accelerator={"gpu": {"type": "nvidia-l4"}})
    code, output = gft.run()
    assert code == 1
    assert "spec.accelerator.gpu" in output
    assert not gft.state.exists()


def test_without_an_output_nothing_starts(gft: Gft) -> None:
    """No installation gives a default here."""
    gft.write(output={})
    code, output = gft.run()
    assert code == 1
    assert "spec.output.uri: is not set" in output
    assert not gft.state.exists()


def test_a_volume_of_a_cluster_is_refused_before_anything_starts(gft: Gft) -> None:
    gft.write(dataset={"uri": "pvc://team-data/x.jsonl", "text": {"template": "{text}"}})
    code, output = gft.run()
    assert code == 1
    assert "spec.dataset.uri: pvc://team-data/x.jsonl is on a volume of a cluster" in " ".join(output.split())
    assert not gft.state.exists()


def test_a_suspended_resource_runs_nothing(gft: Gft) -> None:
    gft.write(suspend=True)
    code, output = gft.run()
    assert code == 1
    assert "spec.suspend is true" in output
    gft.write()
    assert gft.run()[0] == 0


def test_a_merge_follows_and_only_it_is_tried_again(gft: Gft) -> None:
    gft.write(output={"uri": gft.output.as_uri(), "merge": True})
    code, output = gft.run(MERGE_EXIT="12")
    assert code == 1, output
    assert "Failed, MergeFailed: The merge ended with DataInvalid: It was told to." in output
    assert "The adapter is whole" in output
    assert "Then start `gft run` again: only the merge is tried again." in output
    assert re.search(r"log +\S+/jobs/quotes-m1/log", output)
    code, output = gft.run()
    assert code == 0, output
    assert re.search(r"merged +file://\S+/out/merged\n", output)
    assert "Nothing was merged." in output
    assert [job["metadata"]["name"] for job in Store(gft.state / "store.json").list("Job")] == [
        "quotes-p1", "quotes-t1", "quotes-m1", "quotes-m2",
    ]  # fmt: skip
    assert len(gft.status["attempts"]) == 1
