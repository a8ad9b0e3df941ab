"""What checkpoints, progress and samples take from training: from a run's log, and from processor time meanwhile."""

from __future__ import annotations

import bisect
import datetime
import itertools
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MOST_OF_A_STEP = 0.05
"""Longest wait for a checkpoint, as a share of a step."""
MOST_OF_THE_TIME = 0.03
"""Largest share of a run that checkpoints, progress and samples may take, whatever they do: waiting or slowing."""
_EVERY_SECONDS = 0.05
_WARM_UP = 2

Reading = tuple[float, float]
"""A time, and the processor seconds of a process until then."""


class Processors:
    """Reads the processor time of processes, by name, while it is entered."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="processors", daemon=True)
        self.readings: dict[str, list[Reading]] = {name: [] for name in pids}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_SECONDS):
            for name, pid in self._pids.items():
                try:
                    self.readings[name].append((time.time(), processor_seconds(pid)))
                except OSError:  # it has ended
                    continue


def processor_seconds(pid: int) -> float:
    """What a process has used so far, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def used(readings: Sequence[Reading], begin: float, end: float) -> float:
    """Processor seconds between two times, evenly spread between two readings."""
    return _until(readings, end) - _until(readings, begin)


def _until(readings: Sequence[Reading], moment: float) -> float:
    place = bisect.bisect(readings, (moment, float("inf")))
    if place == 0:
        return readings[0][1]
    if place == len(readings):
        return readings[-1][1]
    (early, before), (late, after) = readings[place - 1], readings[place]
    return before + (after - before) * (moment - early) / (late - early)


def more(beside: Sequence[float], alone: Sequence[float], waited: float = 0.0) -> float:
    """What pieces of work have taken more, in sum, than as many others like them; never less than nothing."""
    return max(0.0, sum(beside) - waited - len(beside) * statistics.median(alone))


def figures(
    lines: list[dict[str, Any]], readings: Mapping[str, Sequence[Reading]], interval: int
) -> list[dict[str, Any]]:
    """Rows of the table of costs, from the log of a run with a checkpoint every `interval` steps.

    Steps with an upload beside them are held against the others of the same run: a busy machine slows both. What
    training has waited for a checkpoint lies in the step after it, and is counted once. `readings`: of `trainer` and
    `storage`; where both share the cores, the first tells what is the trainer's own doing.
    """
    ends = [_time(line) for line in lines if line.get("event") == "step"]
    saved = [line for line in lines if line.get("event") == "checkpoint saved"]
    waits = [late["training_waited"] - early["training_waited"] for early, late in itertools.pairwise(saved)]
    uploads = [(_time(line) - line["seconds"], _time(line)) for line in saved]
    alone, beside = [], []
    for span in itertools.pairwise(ends[_WARM_UP:]):
        busy = any(span[0] < until and since < span[1] for since, until in uploads)
        (beside if busy else alone).append(span)
    (trained,) = (line for line in lines if line.get("event") == "trained")
    samples = sum(line["seconds"] for line in lines if line.get("event") == "sample")
    whole = trained["seconds"] + samples
    seconds = {name: [end - begin for begin, end in spans] for name, spans in (("alone", alone), ("beside", beside))}
    step = statistics.median(seconds["alone"])
    slower = more(seconds["beside"], seconds["alone"], sum(waits))
    waited = trained["for_checkpoints_and_status"]
    own = {
        name: [used(readings["trainer"], *span) for span in spans]
        for name, spans in (("alone", alone), ("beside", beside))
    }
    storage = sum(used(readings["storage"], *span) for span in beside)
    rows = [
        ("A step, no upload beside it", "s", step),
        ("A step, an upload beside it", "s", statistics.median(seconds["beside"])),
        ("A checkpoint", "MB", saved[-1]["megabytes"]),
        ("From snapshot to manifest", "s", statistics.median(line["seconds"] for line in saved)),
        ("Training waits for a checkpoint (largest)", "ms", 1000 * max(waits)),
        ("The same as a share of a step", "%", 100 * max(waits) / step, 100 * MOST_OF_A_STEP),
        ("Waiting for checkpoints and status, share of the run", "%", 100 * waited / whole),
        (f"Steps slowed by an upload every {interval} steps, share of the run", "%", 100 * slower / whole),
        ("Samples before and after, share of the run", "%", 100 * samples / whole),
        ("All three together", "%", 100 * (waited + slower + samples) / whole, 100 * MOST_OF_THE_TIME),
        ("Processor seconds of the trainer in a step, no upload beside it", "s", statistics.median(own["alone"])),
        ("The same, an upload beside it", "s", statistics.median(own["beside"])),
        ("Processor time that the trainer uses more beside uploads, share of the run's", "%",
         100 * more(own["beside"], own["alone"]) / sum(own["alone"] + own["beside"])),
        ("Processor seconds of the storage server in a step with an upload", "s", storage / len(beside)),
    ]  # fmt: skip
    return [dict(zip(("what", "unit", "value", "most"), row, strict=False)) for row in rows]


def missed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is above its bound."""
    return [str(row["what"]) for row in rows if row["value"] > row.get("most", float("inf"))]


def _time(line: Mapping[str, Any]) -> float:
    return datetime.datetime.fromisoformat(line["timestamp"]).timestamp()
