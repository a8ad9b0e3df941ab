"""The backends for TPUs on virtual devices: scaling at equal work, what lies on a device, and transformers' Trainer.

`python -m bench.tpu` trains the same rows on 1, 2, 4 and 8 virtual devices of a CPU, once by backend xla, by backend
keras, and by transformers' Trainer with xla_fsdp_v2, and by backend torch on the CPU as it is. It writes
bench/results/tpu.json; `--only` measures a part of it, and `--quick` does a little of it.
Virtual devices share the machine's cores: they show what dividing a model costs, not how fast a TPU is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import about, tpu_estimate, trainer_rows
from bench.tpu_settings import SEED, Arm, Settings
from bench.verdict import row
from gemmatune_cli.local.environments import python_of
from tools.sections import MIB, spread

RESULTS = Path(__file__).parent / "results" / "tpu.json"
ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path(__file__).parent / "tpu_trainer.txt"
NAMES = {
    "torch": "backend torch",
    "xla": "backend xla",
    "keras": "backend keras",
    "trainer": "transformers.Trainer, xla_fsdp_v2",
}
SAME_LOSS, EVEN = 1e-4, 1.15
PARTS = ("torch", "xla", "keras", "trainer")
"""Each backend, and the comparison with the Trainer."""
PAIR: tuple[Arm, Arm] = ("trainer", "xla")
Found = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    arms: tuple[Arm, ...] = ("torch", "xla", "keras")
    against: int = 8
    """Devices of the comparison with the Trainer; 0 leaves it out."""
    repeats: int = 3
    """How often the Trainer and backend xla train in turn, each time in a new process."""
    rows: int = 128
    batch: int = 8
    length: int = 64
    steps: int = 10
    flags: str = ""
    """XLA_FLAGS; those of a test compile quickly, not well."""


class Failed(Exception):
    """A process of the benchmark ended early."""


def measure(plan: Plan, model: Path, work: Path, only: Collection[str] = PARTS) -> list[Found]:
    """Every arm on every number of devices, of the parts named: what its process told."""
    rows, ordered = _rows(plan, model, work)
    first = Settings("xla", 1, str(model), str(rows), str(ordered), plan.batch, plan.length, plan.steps, "adafactor")
    # Backend keras has AdamW alone; R2, and so the comparison with the Trainer, has Adafactor.
    wanted: list[tuple[str, Settings]] = [
        (arm, replace(first, arm=arm, devices=n, optimizer="adamw_torch"))
        for arm in plan.arms
        for n in (plan.devices if arm != "torch" else plan.devices[:1])
    ]
    if plan.against:
        wanted += [("trainer", replace(first, arm=arm, devices=plan.against)) for arm in PAIR * plan.repeats]
    found = []
    for part, settings in wanted:
        if part not in only:
            continue
        found.append({"part": part, "arm": settings.arm, "devices": settings.devices, "optimizer": settings.optimizer})
        found[-1] |= _run(settings, plan.flags)
        steady = _steady(found[-1])
        print(
            f"{NAMES[settings.arm]}, {settings.devices} devices: {statistics.median(steady):.2f} s a step", flush=True
        )
    return found


def _rows(plan: Plan, model: Path, work: Path) -> tuple[Path, Path]:
    """The rows that fit, and the same in the order of the steps, for the arm that does not know the project."""
    from gemmatune_trainer.data.order import step_rows

    made = trainer_rows.make("quotes", model / "tokenizer.json", 2 * plan.rows, 0).train
    fitting = [one for one in made if len(one[0]) <= plan.length][: plan.rows]
    rows, ordered = work / "rows.json", work / "ordered.json"
    trainer_rows.Rows(fitting, []).write(rows)
    order = [step_rows(SEED, step, len(fitting), plan.batch) for step in range(plan.steps)]
    ordered.write_text(json.dumps([[fitting[index] for index in step] for step in order]))
    return rows, ordered


def _run(settings: Settings, flags: str) -> Found:
    """One arm in its environment, on that many virtual devices."""
    if settings.arm == "keras":
        count = f"--xla_force_host_platform_device_count={settings.devices}"
        device = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{count} {flags}".strip()}
    elif settings.arm == "torch":
        device = {}
    else:
        device = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(settings.devices), "OMP_NUM_THREADS": "1"}
        device |= {"XLA_FLAGS": flags} if flags else {}
    module = "bench.tpu_trainer" if settings.arm == "trainer" else "bench.tpu_arm"
    command = [str(_python(settings.arm)), "-m", module, settings.argument()]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **device}, check=False
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{NAMES[settings.arm]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def _python(arm: Arm) -> Path:
    """The Python of an arm's environment; that of the Trainer is made in the user's cache where it is not there."""
    if arm != "trainer":
        python = python_of(arm)
        if python is None:
            raise Failed(f"the environment of backend {arm} is not here: make setup-{arm}")
        return python
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "gemmatune" / f"bench-tpu-{wanted}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        uv = subprocess.run([ROOT / "tools" / "uv.sh"], capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", folder], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "-r", REQUIREMENTS], check=True)
        complete.touch()
    return python


def _steady(one: Found) -> list[float]:
    """Seconds of the steps that compile nothing."""
    seconds: list[float] = one["seconds"][2:]
    return seconds


def lines(found: Iterable[Found]) -> list[Found]:
    """One line for each arm and number of devices; of what was repeated the first, with the steps of all."""
    groups: dict[tuple[str, str, int], list[Found]] = {}
    for one in found:
        groups.setdefault((one["arm"], one["optimizer"], one["devices"]), []).append(one)
    return [
        {
            "arm": one["arm"],
            "name": NAMES[one["arm"]],
            "optimizer": one["optimizer"],
            "devices": one["devices"],
            "seconds": [seconds for again in group for seconds in _steady(again)],
            "compile_seconds": one["compile_seconds"],
            "compilations": one["compilations"],
            "late": one["late"],
            "weights": one["bytes"]["weights"][0],
            "moments": one["bytes"]["optimizer"][0] if "optimizer" in one["bytes"] else None,
            "whole": one["bytes"]["weights"][1],
            "peak": max(again["peak_rss"] for again in group),
            "loss": one["losses"][-1],
        }
        for group in groups.values()
        for one in group[:1]
    ]


def targets(found: list[Found]) -> list[Found]:
    """What was to be reached, and what was."""
    made = []
    for arm in ("xla", "keras"):
        ours = [one for one in found if one["arm"] == arm and one["optimizer"] == "adamw_torch"]
        if not ours:
            continue
        apart = [_apart(one, ours[0]) for one in ours[1:]] or [0.0]
        late = sum(one["late"] for one in ours)
        most = [one["bytes"]["weights"][0] * one["devices"] / one["bytes"]["weights"][1] for one in ours]
        made += [
            row(f"{NAMES[arm]}: losses on several devices against those on one", f"<= {SAME_LOSS:g}", [max(apart)],
                lambda v: v <= SAME_LOSS, digits=7),
            row(f"{NAMES[arm]}: compilations after step 2", "0", [late], lambda v: v == 0, digits=0),
            row(f"{NAMES[arm]}: weights of a device x devices / all weights", f"<= {EVEN:g}", [max(most)],
                lambda v: v <= EVEN, digits=3),
        ]  # fmt: skip
    alone = {one["arm"]: one for one in found if one["devices"] == 1 and one["optimizer"] == "adamw_torch"}
    if {"torch", "xla"} <= alone.keys():  # keras draws another adapter
        made.append(
            row("backend xla: losses against those of backend torch", f"<= {SAME_LOSS:g}",
                [_apart(alone["xla"], alone["torch"])], lambda v: v <= SAME_LOSS, digits=7)
        )  # fmt: skip
    theirs, mine = ([one for one in found if one["part"] == "trainer" and one["arm"] == arm] for arm in PAIR)
    if theirs and mine:
        pairs = list(zip(theirs, mine, strict=True))
        made += [
            row("backend xla: losses against the Trainer's", f"<= {SAME_LOSS:g}",
                [max(_apart(*pair) for pair in pairs)], lambda v: v <= SAME_LOSS, digits=7),
            row("backend xla: steps a second against the Trainer's", ">= 1", [_faster(*pair) for pair in pairs],
                lambda v: v >= 1),
        ]  # fmt: skip
    return made


def _faster(theirs: Found, mine: Found) -> float:
    """How many steps of ours fit into one of the Trainer's, by the medians of two trainings, one after the other."""
    ratio: float = statistics.median(_steady(theirs)) / statistics.median(_steady(mine))
    return ratio


def _apart(one: Found, other: Found) -> float:
    """Largest relative difference of the losses of two trainings."""
    return max(abs(mine / theirs - 1) for mine, theirs in zip(one["losses"], other["losses"], strict=True))


def benchmark(plan: Plan, model: Path, only: Collection[str] = PARTS) -> Found:
    """The result file without commit, date and machine."""
    with tempfile.TemporaryDirectory(prefix="gemmatune-bench-") as name:
        raw = measure(plan, model, Path(name), only)
    return document(raw, plan, dict.fromkeys((one["part"] for one in raw), about.here_and_now()))


def document(raw: list[Found], plan: Plan, parts: Found) -> Found:
    """What is written of measurements; `parts` says when and of which commit each was measured."""
    return {
        "parts": parts,
        "targets": targets(raw),
        "lines": lines(raw),
        "estimate": tpu_estimate.lines(),
        "plan": {"rows": plan.batch, "length": plan.length, "steps": plan.steps},
        "raw": raw,
    }


def joined(old: Found, new: Found, plan: Plan) -> Found:
    """The parts that were measured now, with the others as they were."""
    raw = [one for one in old["raw"] if one["part"] not in new["parts"]] + new["raw"]
    return document(sorted(raw, key=lambda one: PARTS.index(one["part"])), plan, old["parts"] | new["parts"])


QUICK = Plan(
    devices=(1, 2),
    against=2,
    repeats=1,
    rows=16,
    batch=4,
    steps=4,
    flags="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
"""What a test has time for."""


def main() -> None:
    """Measures, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    about.with_model(parser)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one and two devices, few steps")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; the other parts stay as they are")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    found = benchmark(plan, about.model_of(arguments), arguments.only or PARTS)
    if arguments.only and arguments.output.exists():
        found = joined(json.loads(arguments.output.read_text()), found, plan)
    for line in found["lines"]:
        print(
            f"{line['name']:36}{line['optimizer']:12}{line['devices']:2} devices {spread(line['seconds'])} s"
            f"{line['weights'] / MIB:9.1f} MiB of weights, {line['compilations']} compilations"
        )
    for item in found["targets"]:
        print(f"{'met   ' if item['met'] else 'MISSED'} {item['what']}: {item['measured']} ({item['target']})")
    about.write(found, arguments.output)


if __name__ == "__main__":
    main()
