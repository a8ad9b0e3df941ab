"""What checkpoints cost a run, and what kills cost it: the chaos suite's full counts, and the real Gemma 3 270M.

`python -m bench.chaos` runs the suite with 30 kills, trains with a checkpoint every few steps into fake-gcs-server, and
writes bench/results/chaos.json. It fails where a kill loses more than two intervals, or a step waits too long.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import about
from bench.memory import DATA, RunFailed
from gemmatune_api import catalog, fit
from gemmatune_api.defaults import resolve
from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG
from gemmatune_api.runconfig import RunIdentity, build
from gemmatune_api.spec import FineTuneSpec
from tests.support.fakegcs import FakeGcs
from tests.support.quotes import quote_rows

RESULTS = Path(__file__).parent / "results" / "chaos.json"
STEPS, INTERVAL, ROWS = 60, 10, 8
MOST_OF_A_STEP = 0.05
"""Longest wait for a checkpoint, as a share of a step."""
MOST_OF_THE_TIME = 0.03
"""Largest share of training that checkpoints, status and samples may take."""


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
    """One run of the real model on quotes, with a checkpoint every INTERVAL steps.

    Steps with an upload beside them are held against the others of the same run: a busy machine slows both.
    """
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
        _run("prepare", environment, scratch)
        return _figures(_run("train", environment, scratch))


def _run(role: str, environment: Mapping[str, str], scratch: Path) -> list[dict[str, Any]]:
    """Runs a role to its end; its log."""
    done = subprocess.run(
        [sys.executable, "-m", "gemmatune_trainer", role],
        env=dict(environment), cwd=scratch, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RunFailed(f"{role} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


def _figures(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of the steps with and without an upload beside them, and what training has waited for."""
    ends = [_time(line) for line in lines if line.get("event") == "step"]
    saved = [line for line in lines if line.get("event") == "checkpoint saved"]
    waits = [late["training_waited"] - early["training_waited"] for early, late in itertools.pairwise(saved)]
    uploads = [(_time(line) - line["seconds"], _time(line)) for line in saved]
    alone, beside = [], []
    for begin, end in itertools.pairwise(ends[2:]):  # the first steps warm up
        busy = any(begin < until and since < end for since, until in uploads)
        (beside if busy else alone).append(end - begin)
    (trained,) = (line for line in lines if line.get("event") == "trained")
    step, upload = statistics.median(alone), statistics.median(line["seconds"] for line in saved)
    lost = sum(max(0.0, seconds - step) for seconds in beside) / sum(alone + beside)
    return [
        {"what": "A step, no upload beside it", "unit": "s", "value": step},
        {"what": "A step, an upload beside it", "unit": "s", "value": statistics.median(beside)},
        {"what": "A checkpoint", "unit": "MB", "value": saved[-1]["megabytes"]},
        {"what": "From snapshot to manifest", "unit": "s", "value": upload},
        {"what": "Training waits for a checkpoint (largest)", "unit": "ms", "value": 1000 * max(waits)},
        {"what": "The same as a share of a step", "unit": "%", "value": 100 * max(waits) / step,
         "most": 100 * MOST_OF_A_STEP},
        {"what": "Waiting for checkpoints and status, share of training", "unit": "%",
         "value": 100 * trained["for_checkpoints_and_status"] / trained["seconds"], "most": 100 * MOST_OF_THE_TIME},
        {"what": f"Steps slowed by an upload every {INTERVAL} steps, share of training", "unit": "%",
         "value": 100 * lost},
    ]  # fmt: skip


def _time(line: Mapping[str, Any]) -> float:
    return datetime.datetime.fromisoformat(line["timestamp"]).timestamp()


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
    over = [row["what"] for row in costs if row["value"] > row.get("most", float("inf"))]
    sys.exit(f"too much: {', '.join(over)}" if over else 0)


def write(runs: list[dict[str, Any]], costs: list[dict[str, Any]], output: Path) -> None:
    """Writes the figures with commit, date and machine."""
    found = {
        "costs": costs,
        "runs": runs,
    }
    about.write(found, output)


if __name__ == "__main__":
    main()
