"""The trainer's speed and memory beside what people use instead, on the real Gemma 3 270M.

`python -m bench.trainer` trains every arm on the same rows, step by step and turn by turn, and writes
bench/results/trainer.json; `--quick` does a little of it on a small model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from bench import about, trainer_rows, trainer_verdict, trainer_whole
from bench.arms import RANK, Arm, Precision, Settings
from bench.trainer_rows import Kind
from gemmatune_api import catalog
from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG
from tools.sections import MIB, spread

RESULTS = Path(__file__).parent / "results" / "trainer.json"
ROOT = Path(__file__).parents[1]
ARMS: tuple[Arm, ...] = get_args(Arm)
KINDS: tuple[Kind, ...] = get_args(Kind)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    kinds: tuple[Kind, ...] = KINDS
    precisions: tuple[Precision, ...] = PRECISIONS
    arms: tuple[Arm, ...] = ARMS
    batch: int = 8
    """Rows of a step, and of a micro-batch everywhere but in R1's arm."""
    warm_up: int = 3
    repeats: int = 5
    threads: int = 2
    held_out: int = 32
    whole: int = 300
    """Steps of the whole run, those of an epoch of 2,400 rows; 0 leaves it out."""
    quality: int = 24
    """Steps of the comparison of NF4 with bf16; 0 leaves it out."""

    def steps_per_repeat(self, kind: Kind) -> int:
        """Steps of one turn: short rows take more."""
        return 4 if kind == "quotes" else 1

    def steps(self, kind: Kind) -> int:
        """Steps that an arm does: warm-up, repeats, and one under the counters."""
        return self.warm_up + self.repeats * self.steps_per_repeat(kind) + 1


class Failed(Exception):
    """A process of the benchmark ended early, or the arms did not train on the same labels."""


class Process:
    """A process that answers each line on stdin with a line of JSON."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment,
            )  # fmt: skip

    def tell(self, line: str) -> None:
        """Sends a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Waits for an answer. Raises Failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self.name} ended with {self._process.wait()}:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)

    def ask(self, line: str) -> Any:
        """Sends a line and waits for the answer."""
        self.tell(line)
        return self.answer()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


def measure(plan: Plan, model: Path, work: Path, only: set[str]) -> list[dict[str, Any]]:
    """Every arm for every data and precision (or those named): the raw measurements."""
    found = []
    for kind in plan.kinds:
        rows = work / f"{kind}.json"
        count = plan.steps(kind) * plan.batch
        trainer_rows.make(kind, model / "tokenizer.json", count, plan.held_out).write(rows)
        for precision in plan.precisions:
            if only and f"{kind}-{precision}" not in only:
                continue
            folder = work / f"{kind}-{precision}"
            folder.mkdir()
            found += _setting(plan, kind, precision, model, rows, folder)
    return found


def _setting(
    plan: Plan, kind: Kind, precision: Precision, model: Path, rows: Path, folder: Path
) -> list[dict[str, Any]]:
    """The arms of one data and precision, in turn."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads), ENV_CACHE: str(folder / "cache")}
    found: dict[Arm, dict[str, Any]] = {}
    with ExitStack() as stack:
        gemm = stack.enter_context(_process("gemm", ["-m", "bench.gemm", str(plan.threads)], folder, environment))
        arms: dict[Arm, Process] = {}
        for arm in plan.arms:
            settings = Settings(
                arm, precision, str(model), str(rows), plan.batch, plan.steps(kind), plan.threads, time.time()
            )
            command = ["-m", "bench.arms", settings.argument()]
            arms[arm] = stack.enter_context(_process(arm, command, folder, environment))
            loaded = arms[arm].answer()
            warm = arms[arm].ask(json.dumps({"steps": plan.warm_up}))
            found[arm] = {"data": kind, "precision": precision, "arm": arm, "loaded": loaded, "warm": warm, "turns": []}
            _say(f"{kind} {precision} {arm}: first step after {warm['first_step']:.1f} s")
        same_labels({arm: one["warm"]["documents"] for arm, one in found.items()})
        peaks = []
        for repeat in range(plan.repeats):
            peaks.append(gemm.ask(precision))
            for arm in _rotated(plan.arms, repeat):
                command_line = json.dumps({"steps": plan.steps_per_repeat(kind)})
                found[arm]["turns"].append(arms[arm].ask(command_line))
            same_labels({arm: one["turns"][-1]["documents"] for arm, one in found.items()})
        for arm in plan.arms:
            found[arm]["measured"] = arms[arm].ask(json.dumps({"steps": 1, "measure": True}))
            arms[arm].ask(json.dumps({"end": str(folder / f"adapter-{arm}")}))
            arms[arm].close()
            found[arm]["gemm"] = peaks
    adapters = [str(folder / f"adapter-{arm}") for arm in plan.arms]
    losses = _held_out(model, rows, plan.threads, adapters, environment)
    for arm, one in found.items():
        one["base_nll"], one["nll"] = losses[""], losses[str(folder / f"adapter-{arm}")]
    return list(found.values())


def same_labels(documents: dict[Arm, list[Any]]) -> None:
    """Makes sure that all arms trained the same documents with the same labels, token by token. Raises Failed."""
    expected: list[Any] | None = None
    for arm, seen in documents.items():
        seen = sorted(seen)
        if expected is not None and seen != expected:
            raise Failed(f"{arm} trained other tokens or labels than {next(iter(documents))}")
        expected = seen


def _rotated(arms: Sequence[Arm], by: int) -> list[Arm]:
    by %= len(arms)
    return [*arms[by:], *arms[:by]]


@contextmanager
def _process(name: str, command: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[Process]:
    process = Process(name, command, folder, environment)
    try:
        yield process
    finally:
        process.close()


def _held_out(
    model: Path, rows: Path, threads: int, adapters: Sequence[str], environment: dict[str, str]
) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.held_out", str(model), str(rows), str(threads), *adapters]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if result.returncode:
        raise Failed(f"the evaluator ended with {result.returncode}:\n{result.stderr[-2000:]}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def _say(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", flush=True)


def shape_of(model: Path) -> dict[str, Any]:
    """Counts of the model that the necessary work follows from."""
    config = json.loads((model / "config.json").read_text())
    found = catalog.by_config(config)
    if found is None:
        raise Failed(f"{model} is no Gemma")
    return {
        "non_embedding": found.parameters - found.embedding,
        "embedding": found.embedding,
        "adapter": found.trainable(RANK, "all-linear"),
        "attention_width": found.heads * found.head_dim,
        "layers": found.layers,
    }


def whole_run(plan: Plan, model: Path, work: Path) -> dict[str, Any]:
    """A run of ours with checkpoints and progress: its beginning, and what is lost between its steps."""
    folder = work / "whole"
    folder.mkdir()
    data = folder / "quotes.jsonl"
    trainer_rows.write_quotes(data)
    settings = Settings("ours", "bf16", str(model), str(data), plan.batch, plan.whole, plan.threads, 0.0)
    config = trainer_whole.story(settings, folder / "out")
    environment = {
        **os.environ,
        ENV_RUN: config.to_env(),
        ENV_CACHE: str(folder / "cache"),
        ENV_TERMINATION_LOG: str(folder / "message.json"),
        ENV_STATUS_FILE: str(folder / "status.json"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    _run([sys.executable, "-c", "import gemmatune_trainer.backends.torch"], environment)  # images bring it compiled
    _run([sys.executable, "-m", "gemmatune_trainer", "prepare"], environment)
    settings = replace(settings, started=time.time())
    command = [sys.executable, "-m", "bench.trainer_whole", "run", settings.argument()]
    found: dict[str, Any] = json.loads(_run(command, environment).splitlines()[-1])
    _say(f"whole run: first step after {found['first_step']:.1f} s, {100 * found['lost']:.2f}% lost")
    return found


def quality(plan: Plan, model: Path, work: Path) -> list[dict[str, Any]]:
    """NF4 against bf16: the share of LoRA's gain in held-out NLL that QLoRA reaches, by seed."""
    rows, steps = work / "quality.json", plan.quality
    trainer_rows.make("quotes", model / "tokenizer.json", steps * plan.batch, plan.held_out).write(rows)
    settings = Settings("ours", "bf16", str(model), str(rows), plan.batch, steps, plan.threads, 0.0)
    environment = {**os.environ, ENV_CACHE: str(work / "cache")}
    found = []
    for seed in SEEDS:
        ends = {}
        for method in ("lora", "qlora"):
            command = [sys.executable, "-m", "bench.trainer_whole", "quality", settings.argument(), method, str(seed)]
            ends[method] = json.loads(_run(command, environment).splitlines()[-1])
        base = ends["lora"]["before"]
        recovered = (base - ends["qlora"]["after"]) / (base - ends["lora"]["after"])
        _say(f"seed {seed}: NF4 recovers {recovered:.3f} of the gain")
        found.append({"seed": seed, "steps": steps, "recovered": recovered, **ends})
    return found


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if result.returncode:
        raise Failed(f"{' '.join(command[1:4])} ended with {result.returncode}:\n{result.stderr[-2000:]}")
    return result.stdout


def table(lines: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> str:
    """What is printed at the end."""
    shown = [f"{'':30}{'label-tok/s':>12}{'tok/s':>8}{'MFU':>6}{'work':>6}{'peak MiB':>9}{'live':>7}{'NLL':>7}"]
    for line in lines:
        middle = {key: statistics.median(value) for key, value in line.items() if isinstance(value, list)}
        shown.append(
            f"{line['data'] + ' ' + line['precision'] + ' ' + line['name']:30}"
            f"{middle['label_tokens_per_second']:12.1f}{middle['tokens_per_second']:8.1f}"
            f"{middle['utilisation']:6.2f}{line['work']:6.2f}{line['peak_rss'] / MIB:9.0f}"
            f"{line['live_bytes'] / MIB:7.0f}{line['nll']:7.3f}"
        )
    for item in targets:
        measured = spread(item["measured"], item["digits"])
        shown.append(
            f"{'met   ' if item['met'] else 'MISSED'} {item['what']}: {measured} {item['unit']} ({item['target']})"
        )
    return "\n".join(shown)


def main() -> None:
    """Measures, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    about.with_model(parser)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one repeat of bf16 quotes and nothing else")
    help_only = (
        "a part: data and precision, such as quotes-bf16, or whole, or quality; the other parts stay as they are"
    )
    parser.add_argument("--only", help=help_only, action="append")
    arguments = parser.parse_args()
    model = about.model_of(arguments)
    plan = QUICK if arguments.quick else Plan()
    document = benchmark(plan, model, set(arguments.only or []))
    if arguments.only and arguments.output.exists():
        document = joined(json.loads(arguments.output.read_text()), document)
    print(table(document["arms"], document["targets"]))
    about.write(document, arguments.output)


QUICK = Plan(
    kinds=("quotes",),
    precisions=("bf16",),
    batch=4,
    warm_up=1,
    repeats=1,
    threads=1,
    held_out=4,
    whole=0,
    quality=0,
)
"""What a test has time for."""


def benchmark(plan: Plan, model: Path, only: set[str]) -> dict[str, Any]:
    """Everything, or the parts that `only` names: the result file without commit, date and machine."""
    with tempfile.TemporaryDirectory(prefix="gemmatune-bench-") as name:
        work = Path(name)
        raw = measure(plan, model, work, only)
        whole = whole_run(plan, model, work) if plan.whole and (not only or "whole" in only) else None
        found = quality(plan, model, work) if plan.quality and (not only or "quality" in only) else []
    lines = trainer_verdict.arms(raw, shape_of(model), plan.threads)
    measured = dict.fromkeys(_part(line) for line in lines) | ({"whole": None} if whole else {})
    measured |= {"quality": None} if found else {}
    return {
        "parts": {part: about.here_and_now() for part in measured},
        "targets": trainer_verdict.targets(lines, found, whole),
        "arms": lines,
        "quality": found,
        "whole": whole,
        "raw": [_without_documents(one) for one in raw],
    }


def _part(line: dict[str, Any]) -> str:
    return f"{line['data']}-{line['precision']}"


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The parts that were measured now, with the others as they were; each says of which commit it is."""
    both = {}
    for name in ("arms", "raw"):
        lines = [line for line in old[name] if _part(line) not in new["parts"]] + new[name]
        both[name] = sorted(lines, key=lambda line: [f"{k}-{p}" for k in KINDS for p in PRECISIONS].index(_part(line)))
    quality, whole = new["quality"] or old["quality"], new["whole"] or old["whole"]
    targets = trainer_verdict.targets(both["arms"], quality, whole)
    return {"parts": old["parts"] | new["parts"], "targets": targets, **both, "quality": quality, "whole": whole}


def _without_documents(one: Any) -> Any:
    if isinstance(one, dict):
        return {key: _without_documents(value) for key, value in one.items() if key != "documents"}
    return [_without_documents(value) for value in one] if isinstance(one, list) else one


if __name__ == "__main__":
    main()
