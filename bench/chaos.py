"""What checkpoints cost a run, and what kills cost it: the chaos suite's full counts, and the real Gemma 3 270M.

`python -m bench.chaos` runs the suite with 30 kills, trains with a checkpoint every few steps into fake-gcs-server, and
writes bench/results/chaos.json. It fails where a kill loses more than two intervals, a step waits too long, or
checkpoints, progress and samples together take more of the run than they may.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import about, checkpoint_cost
from bench.memory import DATA, RunFailed
from gemmatune_api import catalog, fit
from gemmatune_api.defaults import resolve
from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG
from gemmatune_api.runconfig import RunIdentity, build
from gemmatune_api.spec import FineTuneSpec
from tests.support.fakegcs import FakeGcs
from tests.support.quotes import quote_rows

RESULTS = Path(__file__).parent / "results" / "chaos.json"
STEPS, INTERVAL, ROWS = 150, 10, 8


def kills(scratch: Path) -> list[dict[str, Any]]:
    """Runs the chaos suite in full; its runs, each with its kills.

    Raises:
        RunFailed: a test failed.
    """
    results = scratch / "kills.json"
    environment = {**os.environ, "GEMMATUNE_SOAK": "1", "GEMMATUNE_CHAOS_RESULTS": str(results)}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "tests/trainer/chaos"]
    if subprocess.run(command, env=environment, cwd=RESULTS.parents[2], check=False).returncode:
        raise RunFailed("the chaos suite failed")
    found: list[dict[str, Any]] = json.loads(results.read_text())
    return found


def cost(model: Path, scratch: Path) -> list[dict[str, Any]]:
    """One run of the real model on quotes, with a checkpoint every INTERVAL steps, and what they cost it."""
    rows = [{"text": f"Quote: {row['text']}\nAuthor: {row['from']}"} for row in quote_rows()[: STEPS * ROWS]]
    (scratch / DATA).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with FakeGcs() as gcs:
        spec = resolve(
            FineTuneSpec.model_validate(
                {
                    "model": {"uri": model.as_uri()},
                    "dataset": {"uri": (scratch / DATA).as_uri(), "text": {"template": "{text}"}},
                    "output": {"uri": f"gs://{gcs.new_bucket()}/run"},
                    "accelerator": {"cpu": {}},
                    "lora": {"rank": 8},
                    "checkpoint": {"everySteps": INTERVAL},
                    "training": {"maxSteps": STEPS, "globalBatchSize": ROWS, "microBatchSize": ROWS},
                    "samples": {"prompts": ["Quote: Imagination is"], "maxNewTokens": 20},
                }
            )
        )
        known = catalog.by_name("gemma-3-270m")
        if known is None:
            raise RunFailed("the catalog has no gemma-3-270m")
        plan = fit.plan(spec, known, rows=len(rows), longest=128)
        config = build(spec, RunIdentity(name="chaos", namespace="bench", uid=scratch.name), 1, plan)
        environment = {
            **os.environ,
            ENV_RUN: config.to_env(),
            ENV_CACHE: str(scratch / "cache"),
            ENV_TERMINATION_LOG: str(scratch / "message.json"),
            ENV_STATUS_FILE: str(scratch / "status.json"),
            ENV_GCS_ENDPOINT: gcs.endpoint,
        }
        _run("prepare", environment, scratch, {})
        lines, readings = _run("train", environment, scratch, {"storage": gcs.pid})
        return checkpoint_cost.figures(lines, readings, INTERVAL)


def _run(
    role: str, environment: Mapping[str, str], scratch: Path, beside: Mapping[str, int]
) -> tuple[list[dict[str, Any]], dict[str, list[checkpoint_cost.Reading]]]:
    """Runs a role to its end; its log, and the processor time of it (`trainer`) and of the processes beside it."""
    started = subprocess.Popen(
        [sys.executable, "-m", "gemmatune_trainer", role],
        env=dict(environment), cwd=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with started, checkpoint_cost.Processors({"trainer": started.pid, **beside}) as processors:
        _, text = started.communicate()
    if started.returncode:
        raise RunFailed(f"{role} ended with {started.returncode}:\n{text[-2000:]}")
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")], processors.readings


def main() -> None:
    """Measures both and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    about.with_model(parser)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model = about.model_of(arguments)
    with tempfile.TemporaryDirectory(prefix="gemmatune-chaos-") as folder:
        costs = cost(model, Path(folder))
        print(json.dumps(costs, indent=1), flush=True)
        runs = kills(Path(folder))
    write(runs, costs, arguments.output)
    over = checkpoint_cost.missed(costs)
    sys.exit(f"not met: {', '.join(over)}" if over else 0)


def write(runs: list[dict[str, Any]], costs: list[dict[str, Any]], output: Path) -> None:
    """Writes the figures with commit, date and machine."""
    found = {
        "costs": costs,
        "runs": runs,
    }
    about.write(found, output)


if __name__ == "__main__":
    main()
