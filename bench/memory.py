"""Peak host memory of the trainer on a CPU against the planner's estimate, on the real Gemma 3 270M.

`python -m bench.memory` runs one trainer process for each setting and writes bench/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import about, peak
from gemmatune_api import catalog, fit
from gemmatune_api.defaults import resolve
from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG
from gemmatune_api.runconfig import RunIdentity, build
from gemmatune_api.spec import FineTuneSpec, MethodKind
from gemmatune_api.status import Plan, PlanMemory

DATA = "data.jsonl"
RESULTS = Path(__file__).parent / "results" / "memory.json"
STEPS = 2
"""Optimizer steps of a run: the state of the optimizer exists from the end of the first one on."""
BELOW, ABOVE = -0.10, 0.30
"""How far an estimate may lie below and above the measured peak."""
MIB = 1024**2


@dataclass(frozen=True)
class Setting:
    """One run: rows of exactly `length` tokens, `rows` of them in a forward pass."""

    method: MethodKind
    rows: int
    length: int
    checkpointing: bool = False

    def __str__(self) -> str:
        return f"{self.method}, {self.rows} x {self.length}{', checkpointing' if self.checkpointing else ''}"


SETTINGS = (
    Setting("lora", 1, 128),
    Setting("lora", 4, 128),
    Setting("lora", 1, 512),
    Setting("lora", 4, 512),
    Setting("lora", 4, 512, checkpointing=True),
    Setting("qlora", 1, 128),
    Setting("qlora", 4, 512),
)
"""Two lengths, two batches, both methods, with and without checkpointing."""


@dataclass(frozen=True)
class Measurement:
    """What a run took and what was planned, in bytes."""

    setting: Setting
    peak: int
    plan: PlanMemory

    @property
    def error(self) -> float:
        """The estimate's error as a share of the peak: positive where more was planned than used."""
        return self.plan.total / self.peak - 1


class RunFailed(Exception):
    """A trainer process ended with an error."""


def measure(setting: Setting, model: Path, steps: int = STEPS) -> Measurement:
    """Runs prepare and train as processes of their own; the peak is the resident size that the kernel noted of train.

    Raises:
        RunFailed: a process ended with an error, or the rows have another length than asked for.
    """
    with tempfile.TemporaryDirectory(prefix="gemmatune-memory-") as folder:
        work = Path(folder)
        spec = _spec(setting, model, work, steps)
        _write_rows(setting, work / DATA, steps)
        plan = _plan(spec, setting, steps)
        config = build(spec, RunIdentity(name="memory", namespace="bench", uid=work.name), 1, plan)
        environment = {
            **os.environ,
            ENV_RUN: config.to_env(),
            ENV_CACHE: str(work / "cache"),
            ENV_TERMINATION_LOG: str(work / "message.json"),
            ENV_STATUS_FILE: str(work / "status.json"),
        }
        _run("prepare", environment, work)
        result = from_text((work / "message.json").read_text(), PrepareResult)
        if result is None or result.data is None or result.data.longest != setting.length:
            raise RunFailed(f"rows of {setting.length} tokens were asked for, prepare found {result}")
        return Measurement(setting, _run("train", environment, work), plan.memory)


def planned(setting: Setting, steps: int = STEPS) -> PlanMemory:
    """What the planner says of a setting, without a run."""
    here = Path("/nowhere")
    return _plan(_spec(setting, here, here), setting, steps).memory


def _write_rows(setting: Setting, data: Path, steps: int) -> None:
    """Rows of exactly the setting's length: every word is one token, <bos> stands before and <eos> after them."""
    text = " ".join(["word"] * (setting.length - 2))
    data.write_text((json.dumps({"text": text}) + "\n") * (setting.rows * steps))


def _spec(setting: Setting, model: Path, work: Path, steps: int = STEPS) -> FineTuneSpec:
    """The resource of a run; every token is labelled, which is the worst case for the head."""
    data = work / DATA
    return resolve(
        FineTuneSpec.model_validate(
            {
                "model": {"uri": model.as_uri()},
                "dataset": {"uri": data.as_uri(), "text": {"template": "{text}"}, "maxLength": setting.length},
                "output": {"uri": (work / "out").as_uri()},
                "accelerator": {"cpu": {}},
                setting.method: {},
                "training": {
                    "maxSteps": steps,
                    "globalBatchSize": setting.rows,
                    "microBatchSize": setting.rows,
                    "gradientCheckpointing": setting.checkpointing,
                },
                "samples": {"prompts": ["Quote: Imagination is"], "maxNewTokens": 8},
            }
        )
    )


def _plan(spec: FineTuneSpec, setting: Setting, steps: int) -> Plan:
    model = catalog.by_name("gemma-3-270m")
    if model is None:
        raise RunFailed("the catalog has no gemma-3-270m")
    return fit.plan(spec, model, rows=setting.rows * steps, longest=setting.length)


def _run(role: str, environment: Mapping[str, str], work: Path) -> int:
    """Runs a role to its end; the largest resident size of its process in bytes."""
    log = work / f"{role}.log"
    ended = peak.run([sys.executable, "-m", "gemmatune_trainer", role], log, environment)
    if ended.code:
        raise RunFailed(f"{role} ended with {ended.code}:\n{log.read_text()[-2000:]}")
    return ended.peak


def _table(measurements: list[Measurement]) -> str:
    lines = [f"{'setting':24} {'measured':>10} {'planned':>10} {'error':>7}"]
    for item in measurements:
        planned, used = item.plan.total / MIB, item.peak / MIB
        lines.append(f"{item.setting!s:24} {used:6.0f} MiB {planned:6.0f} MiB {item.error:+7.1%}")
    return "\n".join(lines)


def main() -> None:
    """Measures every setting, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    about.with_model(parser)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model = about.model_of(arguments)
    measurements = []
    for setting in SETTINGS:
        measurements.append(measure(setting, model))
        print(_table(measurements[-1:]), flush=True)
    print(_table(measurements))
    write(measurements, arguments.output)
    wrong = [item for item in measurements if not BELOW <= item.error <= ABOVE]
    sys.exit(f"{len(wrong)} estimates are outside {BELOW:+.0%} to {ABOVE:+.0%}" if wrong else 0)


def write(measurements: list[Measurement], output: Path) -> None:
    """Writes the measurements with commit, date and machine."""
    rows = [
        {**asdict(item.setting), "peak": item.peak, "plan": item.plan.model_dump(by_alias=True)}
        for item in measurements
    ]
    about.write({"measurements": rows}, output)


if __name__ == "__main__":
    main()
