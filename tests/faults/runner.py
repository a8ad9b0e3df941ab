"""Provokes faults side by side and records how long each took to show in its resource."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from gemmatune_api import names
from tests.faults.checks import check, visible
from tests.faults.scene import Fault, Plant, Scene
from tests.support.api import Object
from tests.support.history import Change

SIDE_BY_SIDE = 8
LIMIT_SECONDS = 5.0
SLACK_SECONDS = 1.0
"""Two watches may deliver in another order than things happened, by less than this."""
ROOT = Path(__file__).parents[2]


@dataclass
class Runner:
    """All faults, `runs` times each."""

    plant: Plant
    runs: int = 1
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from the first change that reveals a fault to the status that names it."""
    faults: Sequence[Fault] = ()
    errors: dict[str, list[BaseException]] = field(default_factory=lambda: defaultdict(list))

    def run(self, faults: Sequence[Fault]) -> None:
        """Provokes them; those that take minutes come first."""
        self.faults = faults
        work = [(fault, number) for fault in sorted(faults, key=lambda it: not it.slow) for number in range(self.runs)]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            list(pool.map(lambda item: self._one(*item), work))

    def _one(self, fault: Fault, number: int) -> None:
        scene = Scene(self.plant, fault, number)
        try:
            scene.begin()
            revealed = fault.play(scene)
            began = revealed.at if isinstance(revealed, Change) else revealed
            told = scene.first(
                lambda it: it.kind == names.KIND and visible(fault, it.status), f"{fault.reason} to show"
            )
            seconds = told.at - began
            assert seconds > -SLACK_SECONDS, f"{fault.reason} showed {-seconds:.1f} s before anything revealed it"
            self.latencies[fault.name].append(round(max(0.0, seconds), 3))
            check(scene, fault)
        except BaseException as error:  # noqa: BLE001 - the fault's own test raises it
            error.add_note(f"run {scene.key}: {json.dumps(scene.resource.get('status'), indent=1)[:6000]}")
            for name, status in scene.told_by_objects().items():
                error.add_note(f"{name}: {json.dumps(status)[:3000]}")
            self.errors[fault.name].append(error)
        finally:
            scene.close()

    def document(self) -> Object:
        """What was measured, with the raw values."""
        every = [value for values in self.latencies.values() for value in values]
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        return {
            "commit": commit.stdout.strip(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "runs": self.runs,
            "sideBySide": SIDE_BY_SIDE,
            "limitSeconds": LIMIT_SECONDS,
            "faults": [
                {"fault": "all", "reason": "", **_summary(every)},
                *(
                    {"fault": fault.name, "reason": fault.reason.value, **_summary(values), "seconds": values}
                    for fault in self.faults
                    if (values := self.latencies[fault.name])
                ),
            ],
        }


def _summary(values: Sequence[float]) -> Object:
    return {
        "count": len(values),
        "p50": percentile(values, 50),
        "p95": percentile(values, 95),
        "max": max(values),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]
