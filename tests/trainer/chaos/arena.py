"""Where the trainer is disturbed: runs of a tiny model into fake-gcs-server, all through a proxy that meets requests.

Every run has the settings of one undisturbed run, whose adapter it must end with to the bit: fp32, packing,
accumulation, dropout, and the best adapter by evaluation as the result.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT, ExitCode
from gemmatune_api.runconfig import RunConfig
from tests.support.fakegcs import FakeGcs
from tests.support.faultygcs import FaultyGcs
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.support.wait import wait_for
from tests.trainer.conftest import run_config, write_quotes
from tests.trainer.test_evaluation import write_others

STEPS, INTERVAL, KEEP = 25, 3, 1
"""The last step is due for nothing but by being the last."""
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "every_steps": INTERVAL,
    "keep": KEEP,
    "dropout": 0.1,
    "micro_batch_size": 1,
    "learning_rate": 2e-2,
    "best": True,
}


@dataclass
class Run:
    """One run: its configuration, its bucket, and the folder of its processes."""

    config: RunConfig
    bucket: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    """What its processes have in theirs besides."""

    def attempt(self, number: int) -> RunConfig:
        """The configuration of that attempt."""
        return self.config.model_copy(update={"attempt": number})


class Arena:
    """The runs of a test module, and what they left."""

    def __init__(self, host: TrainerHost, gcs: FakeGcs, proxy: FaultyGcs, model: Path, folder: Path) -> None:
        self.host = host
        self.gcs = gcs
        self.proxy = proxy
        self._model = model
        self._folder = folder
        self._data = write_quotes(folder / "quotes.jsonl")
        self._others = write_others(folder / "others.jsonl")
        self._prepared: Run | None = None
        whole = self.run()
        done = self.start(whole, 1)
        assert done.wait() == ExitCode.DONE, done.log()
        self.undisturbed = whole
        self.adapter = self.left(whole, "adapter/adapter_model.safetensors")
        self.manifest: dict[str, Any] = json.loads(self.left(whole, "manifest.json"))
        assert self.manifest["step"] < STEPS, "the best adapter shall not be the last one"

    def run(self, **changes: Any) -> Run:
        """A new run, prepared. It has a bucket and a cache of its own."""
        bucket = self.gcs.new_bucket()
        settings = {**SETTINGS, "eval_uri": self._others, **changes}
        config = run_config(self._model, self._data, f"gs://{bucket}/run", **settings)
        run = Run(config, bucket, self._folder / bucket)
        if self._prepared is None or changes:
            self.prepare(run)
            self._prepared = self._prepared or run
            return run
        # What preparing leaves is the same for all of them.
        source, target = (self.gcs.client().bucket(name) for name in (self._prepared.bucket, bucket))
        for name in self.gcs.names(self._prepared.bucket, "run/"):
            if name == "run/run.json" or name.startswith("run/prepared/"):
                target.blob(name).upload_from_string(source.blob(name).download_as_bytes())
        return run

    def prepare(self, run: Run) -> None:
        """Prepares the run."""
        done = self.host.run("prepare", run.config, run.folder / "prepare", self.env(run))
        assert done.poll() == ExitCode.DONE, done.log()

    def env(self, run: Run) -> dict[str, str]:
        """The environment of its processes."""
        return {ENV_GCS_ENDPOINT: self.proxy.endpoint, ENV_CACHE: str(run.folder / "cache"), **run.environment}

    def start(
        self, run: Run, number: int, disk: int | None = None, name: str = "", role: str = "train"
    ) -> TrainerProcess:
        """Starts an attempt, or a merge."""
        folder = run.folder / (name or f"{role}-{number}")
        return self.host.start(role, run.attempt(number), folder, self.env(run), disk)

    def finish(self, run: Run, number: int) -> TrainerProcess:
        """An attempt that gets through; the run must then have left what the undisturbed one left."""
        process = self.start(run, number)
        assert process.wait() == ExitCode.DONE, process.log()
        self.assert_undisturbed(run)
        return process

    def assert_undisturbed(self, run: Run) -> None:
        """The adapter is that of the undisturbed run to the bit; so are the evaluations it was chosen by."""
        assert self.left(run, "adapter/adapter_model.safetensors") == self.adapter
        found = json.loads(self.left(run, "manifest.json"))
        for key in ("step", "steps", "evaluations", "loss"):
            assert found[key] == self.manifest[key], key

    def left(self, run: Run, name: str) -> bytes:
        """The content of one of its objects."""
        return self.gcs.read(run.bucket, f"run/{name}")

    def landed(self, run: Run) -> list[int]:
        """Steps of the checkpoints whose manifest is there."""
        names = self.gcs.names(run.bucket, "run/checkpoints/")
        found = (re.fullmatch(r"run/checkpoints/step-(\d+)/manifest\.json", name) for name in names)
        return sorted(int(match.group(1)) for match in found if match)


def folder_of(checkpoint: int) -> str:
    """Part of the object names of a run's first, second, third checkpoint."""
    return f"checkpoints/step-{checkpoint * INTERVAL:08d}/"


def began(process: TrainerProcess) -> int | None:
    """The step that an attempt resumed from; None where it did not come to training."""
    events = process.events("training")
    return int(events[0]["from_step"]) if events else None


def reached(process: TrainerProcess) -> int:
    """The last step that an attempt has done."""
    return (began(process) or 0) + len(process.events("step"))


def wait_for_step(process: TrainerProcess, step: int) -> None:
    """Until the attempt has done that step."""
    wait_for(lambda: reached(process) >= step, f"step {step}", seconds=240, interval=0.01, detail=process.log)


class Sniper:
    """Sends a process a signal from whatever thread comes to the moment for it; after SIGKILL it waits for the end."""

    def __init__(self, number: signal.Signals = signal.SIGKILL) -> None:
        self._number = number
        self._ready = threading.Event()
        self._process: TrainerProcess | None = None
        self.fired = threading.Event()

    def aim(self, process: TrainerProcess) -> None:
        """Names the process."""
        self._process = process
        self._ready.set()

    def fire(self) -> None:
        """Sends it."""
        assert self._ready.wait(60)
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, self._number)
        if self._number == signal.SIGKILL:
            wait_for(lambda: _is_dead(pid), "the process's death", interval=0.005)
        self.fired.set()


def _is_dead(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"
