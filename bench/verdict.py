"""What the raw measurements of the operator say about its targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Found = dict[str, Any]

MIB = 2**20


def document(found: Found) -> Found:
    """The result file: each target with its measurements, growth, requests, and everything raw."""
    return {"targets": _targets(found), "growth": _growth(found), **_requests(found), "raw": found}


RATE_SHARE = 0.95
"""Of the asked rate of progress writes that must have been reached for the rows about it to be met: what is asked
counts to the last write's beginning, what is reached to its answer."""


def row(
    what: str,
    target: str,
    values: Iterable[float],
    holds: Callable[[float], bool],
    unit: str = "",
    digits: int = 2,
    asked: bool = True,
) -> Found:
    """A target: the median of the repeats decides.

    Where what it was `asked` of was not reached, it can be missed, but not met: `met` is None.
    """
    measured = list(values)
    held = holds(statistics.median(measured))
    return {
        "what": what,
        "target": target,
        "unit": unit,
        "digits": digits,
        "measured": measured,
        "met": held if asked or not held else None,
    }


def _column(found: Found, what: str, name: str) -> list[float]:
    return [item[name] for item in found[what]]


def _shares(found: Found, what: str, name: str) -> list[float]:
    """The operator's against the ceiling's, repeat by repeat: both ran one after the other."""
    pairs = zip(_column(found, f"{what} operator", name), _column(found, f"{what} bare", name), strict=True)
    return [mine / ceiling for mine, ceiling in pairs]


def _targets(found: Found) -> list[Found]:
    per_second, paced = _column(found, "burst operator", "per_second"), "paced operator"
    count = found["burst operator"][0]["resources"]
    idle, ends = [value * 1000 for value in found["idle operator"][0]], found["finish operator"][0]["resources"]
    memory, progress, live = found["memory"][0], found["progress"][0], len(found["restart"])
    rows = [
        row(f"First Jobs, {count} resources at once", ">= 150/s", per_second, lambda v: v >= 150, "/s", 0),
        row("First Jobs against the ceiling", ">= 0.8", _shares(found, "burst", "per_second"), lambda v: v >= 0.8),
        row("Resource to Job at 100/s, p50", "<= 0.15 s", _column(found, paced, "p50"), lambda v: v <= 0.15, "s", 3),
        row("Resource to Job at 100/s, p95", "<= 0.5 s", _column(found, paced, "p95"), lambda v: v <= 0.5, "s", 3),
        row("Resource to Job, idle, p50", "<= 10 ms", [statistics.median(idle)], lambda v: v <= 10, "ms", 1),
        row(
            f"Ends of attempts to ends of resources, {ends} at once",
            ">= 100/s",
            _column(found, "finish operator", "per_second"),
            lambda v: v >= 100,
            "/s",
            0,
        ),
        row("Ends against the ceiling", ">= 0.8", _shares(found, "finish", "per_second"), lambda v: v >= 0.8),
        *_progress(progress),
        row("Resident memory / floor", "<= 1.25", [memory["operator"] / memory["floor"]], _most(1.25)),
        row(
            "Writes of a successful run, without Events",
            "<= 8",
            [found["requests"][0]["writes_without_events"]],
            lambda v: v <= 8,
            "",
            1,
        ),
    ]
    if live:
        rows.append(row("Restart to converged", "<= 5 s", _column(found, "restart", "seconds"), _most(5), "s"))
        rows.append(row("Writes after a restart", "0", _column(found, "restart", "writes"), _most(0), "", 0))
    return rows


def _progress(found: Found) -> list[Found]:
    """What is promised of progress writes at a rate, and the rate that was reached."""
    cpu, rate = found["cpu"], found.get("rate", 100.0)
    reached, least = found["writes"] / found["seconds"], rate * RATE_SHARE
    asked = reached >= least
    requests, ratio = sum(found["calls"].values()), cpu["operator"] / max(cpu["floor"], 0.01)
    return [
        row(f"Progress writes, {rate:g}/s asked", f">= {least:g}/s", [reached], lambda v: v >= least, "/s", 1),
        row("Progress writes lost", "0", [found["lost"] + found["harmed"]], _most(0), digits=0, asked=asked),
        row("Requests by the operator meanwhile", "0", [requests], _most(0), digits=0, asked=asked),
        row("Processor time meanwhile / floor", "<= 1.2", [ratio], _most(1.2), asked=asked),
    ]


def _most(limit: float) -> Callable[[float], bool]:
    return lambda value: value <= limit


def _growth(found: Found) -> list[Found]:
    """By the number of resources: the burst and the paced creation of as many."""
    pairs = list(zip(found["growth burst"], found["growth paced"], strict=True))
    pairs += zip(found["burst operator"], found["paced operator"], strict=True)
    grown: dict[int, Found] = {}
    for burst, paced in pairs:
        at = grown.setdefault(burst["resources"], {"resources": burst["resources"]})
        for name, value in (
            ("per_second", burst["per_second"]),
            ("p50", paced["p50"]),
            ("p95", paced["p95"]),
            ("cpu_seconds_per_1000", burst["cpu_seconds_per_1000"]),
        ):
            at.setdefault(name, []).append(value)
    return [grown[count] for count in sorted(grown)]


def _requests(found: Found) -> Found:
    memory, progress = found["memory"][0], found["progress"][0]
    return {
        "requests": [{"request": what, "per_run": n} for what, n in found["requests"][0]["by_verb"].items()],
        "processes": [{"process": name, "resident": memory[name]} for name in ("operator", "floor")],
        "progress_processor": [
            {"process": name, "seconds": spent, "per_write_ms": spent * 1000 / progress["writes"]}
            for name, spent in progress["cpu"].items()
        ],
        "ceiling": {
            "burst_per_second": _column(found, "burst bare", "per_second"),
            "finish_per_second": _column(found, "finish bare", "per_second"),
            "paced_p50": _column(found, "paced bare", "p50"),
            "idle_p50_ms": statistics.median(found["idle bare"][0]) * 1000,
        },
    }


_MET = {True: "", False: "MISSED", None: "NOT SHOWN"}


def table(result: Found) -> str:
    """For the terminal."""
    lines = [f"{'':52} {'target':>10} {'median':>10} {'least':>10} {'most':>10}"]
    for item in result["targets"]:
        values, digits = item["measured"], item["digits"]
        shown = [f"{value:10.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
        lines.append(f"{item['what']:52} {item['target']:>10} {' '.join(shown)} {_MET[item['met']]}")
    lines += ["", f"{'resources':>10} {'Jobs/s':>8} {'p50 s':>8} {'p95 s':>8} {'CPU s / 1000':>13}"]
    for item in result["growth"]:
        middle = {name: statistics.median(values) for name, values in item.items() if name != "resources"}
        lines.append(
            f"{item['resources']:10,} {middle['per_second']:8.0f} {middle['p50']:8.3f} {middle['p95']:8.3f} "
            f"{middle['cpu_seconds_per_1000']:13.1f}"
        )
    lines += ["", "Requests per successful run:"]
    lines += [f"  {item['request']:28} {item['per_run']:6.2f}" for item in result["requests"]]
    return "\n".join(lines)
