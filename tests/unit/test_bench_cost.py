"""What the benchmark says that checkpoints cost: made-up logs whose costs are known, and a process that is busy."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from typing import Any

import pytest

from bench import checkpoint_cost
from bench.checkpoint_cost import Processors, figures, missed, used
from tests.support.wait import wait_for

BEGIN = 1_750_000_000.0


def run(slower: float, wait: float, sample: float, own: float = 0.0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """40 steps of a second with a checkpoint every 10, whose upload lasts two seconds and slows the steps beside it.

    `own`: processor seconds that the trainer uses more in such a step; the storage uses the rest of what it is slower.
    """

    def line(event: str, moment: float, **values: Any) -> dict[str, Any]:
        stamp = datetime.datetime.fromtimestamp(BEGIN + moment, datetime.UTC).isoformat()
        return {"event": event, "timestamp": stamp, **values}

    lines = [line("sample", 0.0, seconds=sample)]
    readings: dict[str, list[tuple[float, float]]] = {"trainer": [(BEGIN, 0.0)], "storage": [(BEGIN, 0.0)]}
    now = waited = trainer = storage = 0.0
    saved: list[dict[str, Any]] = []
    for step in range(1, 41):
        beside = step % 10 in (1, 2) and step > 10
        now += 1.0 + (slower if beside else 0.0) + (wait if beside and step % 10 == 1 else 0.0)
        trainer += 2.0 + (own if beside else 0.0)
        storage += (slower - own) if beside else 0.0
        readings["trainer"].append((BEGIN + now, trainer))
        readings["storage"].append((BEGIN + now, storage))
        lines.append(line("step", now))
        if step % 10 == 0:
            lasts = 2 * (1 + slower) + wait - 0.02
            facts = {"seconds": lasts, "training_waited": waited, "megabytes": 23.0}
            saved.append(line("checkpoint saved", now + lasts + 0.01, **facts))
            waited += wait
    lines += [*saved, line("trained", now, seconds=now, for_checkpoints_and_status=3 * wait)]
    return lines, readings


def by_name(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["what"]: row["value"] for row in rows}


def test_waiting_slower_steps_and_samples_count_together() -> None:
    rows = figures(*run(slower=0.2, wait=0.1, sample=2.0), 10)
    found = by_name(rows)
    whole = 40 + 6 * 0.2 + 3 * 0.1 + 2.0
    assert found["A step, no upload beside it"] == pytest.approx(1.0)
    assert found["Waiting for checkpoints and status, share of the run"] == pytest.approx(100 * 0.3 / whole)
    assert found["Steps slowed by an upload every 10 steps, share of the run"] == pytest.approx(100 * 1.2 / whole)
    assert found["Samples before and after, share of the run"] == pytest.approx(100 * 2.0 / whole)
    assert found["All three together"] == pytest.approx(100 * 3.5 / whole)
    assert missed(rows) == ["The same as a share of a step", "All three together"]
    assert missed(figures(*run(slower=0.05, wait=0.04, sample=0.5), 10)) == []


@pytest.mark.parametrize(("slower", "sample"), [(0.25, 0.0), (0.0, 1.5)])
def test_each_of_them_alone_can_be_too_much(slower: float, sample: float) -> None:
    assert missed(figures(*run(slower, 0.0, sample), 10)) == ["All three together"]


def test_what_the_server_takes_is_told_apart_by_processor_time() -> None:
    servers = by_name(figures(*run(slower=0.4, wait=0.0, sample=0.0), 10))
    what = "Processor time that the trainer uses more beside uploads, share of the run's"
    assert servers[what] == pytest.approx(0.0, abs=0.1)
    assert servers["Processor seconds of the storage server in a step with an upload"] == pytest.approx(0.4, rel=0.05)
    trainers = by_name(figures(*run(slower=0.4, wait=0.0, sample=0.0, own=0.4), 10))
    assert trainers[what] == pytest.approx(100 * 6 * 0.4 / 78, rel=0.1)


def test_a_busy_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            with Processors({"busy": busy.pid}) as processors:
                begun = time.time()
                wait_for(lambda: checkpoint_cost.processor_seconds(busy.pid) > 0.3, "work", seconds=60)
                wait_for(lambda: processors.readings["busy"][-1][1] > 0.2, "a reading", seconds=60)
        finally:
            busy.kill()
    readings = processors.readings["busy"]
    assert used(readings, begun, time.time()) > 0.1
    assert used(readings, begun - 20, begun - 10) == 0.0
