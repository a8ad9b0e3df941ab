"""The TPU benchmark still works: what its verdicts say, and in a soak every arm in its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import tpu, tpu_estimate
from tests.support.soak import only_in_soak
from tests.support.tinymodels import write_model
from tools import performance


def trained(arm: str, devices: int, optimizer: str = "adamw_torch", **changes: Any) -> dict[str, Any]:
    """What an arm told, of weights that are divided evenly."""
    told: dict[str, Any] = {
        "losses": [4.0, 3.0, 2.0, 1.0],
        "seconds": [9.0, 8.0, 1.0, 1.0],
        "compilations": 3,
        "late": 0,
        "compile_seconds": 12.0,
        "bytes": {"weights": [1000 // devices, 1000], "optimizer": [10, 10]},
        "peak_rss": 5000,
    }
    part = "trainer" if optimizer == "adafactor" else arm
    return {"part": part, "arm": arm, "devices": devices, "optimizer": optimizer, **told, **changes}


def verdicts(raw: list[dict[str, Any]]) -> dict[str, bool]:
    return {item["what"]: item["met"] for item in tpu.targets(raw)}


def test_what_is_met() -> None:
    raw = [trained(arm, devices) for arm in ("xla", "keras") for devices in (1, 8)]
    theirs = trained("trainer", 8, "adafactor", seconds=[9.0, 9.0, 1.5, 1.5])
    del theirs["bytes"]["optimizer"]
    found = verdicts([*raw, trained("xla", 8, "adafactor"), theirs])
    assert len(found) == 8
    assert all(found.values())
    lines = tpu.lines([*raw, theirs])
    assert [line["weights"] for line in lines] == [1000, 125, 1000, 125, 125]
    assert lines[-1]["moments"] is None


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"losses": [4.0, 3.0, 2.0, 1.001]}, "losses on several devices against those on one"),
        ({"late": 1}, "compilations after step 2"),
        ({"bytes": {"weights": [200, 1000], "optimizer": [10, 10]}}, "weights of a device x devices / all weights"),
    ],
)
def test_what_is_missed(changes: dict[str, Any], missed: str) -> None:
    found = verdicts([trained("xla", 1), trained("xla", 8, **changes)])
    assert [what for what, met in found.items() if not met] == [f"backend xla: {missed}"]


@pytest.mark.parametrize(("loss", "met"), [(1.0, True), (1.001, False)])
def test_torch_and_xla_train_the_same(loss: float, met: bool) -> None:
    found = verdicts([trained("torch", 1), trained("xla", 1, losses=[4.0, 3.0, 2.0, loss])])
    assert found["backend xla: losses against those of backend torch"] is met


def test_a_slower_backend_is_no_success() -> None:
    slow = trained("xla", 8, "adafactor", seconds=[9.0, 9.0, 2.0, 2.0])
    found = verdicts([slow, trained("trainer", 8, "adafactor")])
    assert not found["backend xla: steps a second against the Trainer's"]
    assert found["backend xla: losses against the Trainer's"]


def test_repeats_are_compared_pair_by_pair() -> None:
    """A machine that was slow for the second pair was slow for both of it."""
    raw = []
    for pace in (1.0, 2.0):
        raw.append(trained("trainer", 8, "adafactor", seconds=[9.0, 9.0, 3.0 * pace, 3.0 * pace]))
        raw.append(trained("xla", 8, "adafactor", seconds=[9.0, 9.0, 2.0 * pace, 2.0 * pace]))
    (found,) = [item for item in tpu.targets(raw) if "steps a second" in item["what"]]
    assert found["measured"] == [1.5, 1.5]
    assert [line["seconds"] for line in tpu.lines(raw)] == [[3.0, 3.0, 6.0, 6.0], [2.0, 2.0, 4.0, 4.0]]


def test_a_part_that_is_measured_again_replaces_itself_alone() -> None:
    def measured(commit: str, *raw: dict[str, Any]) -> dict[str, Any]:
        return tpu.document(list(raw), tpu.QUICK, {one["part"]: {"commit": commit} for one in raw})

    first = measured("a", trained("xla", 1), trained("keras", 1), trained("xla", 8, "adafactor"))
    again = measured("b", trained("xla", 1, compilations=7))
    found = tpu.joined(first, again, tpu.QUICK)
    assert [part["commit"] for part in found["parts"].values()] == ["b", "a", "a"]
    assert [(line["arm"], line["compilations"]) for line in found["lines"]] == [("xla", 7), ("keras", 3), ("xla", 3)]


def test_the_estimate_by_hand() -> None:
    """An L4 at 40% of 121 TFLOP/s, 6 operations for each of Gemma 2 9B's 9.24 billion weights and a token."""
    first, *_, last = tpu_estimate.lines()
    assert first["tokens_per_second"] == pytest.approx(0.4 * 121e12 / (6 * 9.24e9), rel=0.001)
    assert first["as_cheap_up_to"] == 1
    assert (last["type"], round(last["as_cheap_up_to"], 2)) == ("tpu-v6e-slice", 7.59)


@only_in_soak
@pytest.mark.timeout(1800)
def test_every_arm_in_its_environment(tmp_path: Path) -> None:
    found = tpu.benchmark(tpu.QUICK, write_model(tmp_path / "model", "3"))
    assert len(found["lines"]) == 7
    shown = performance.REPORTS["tpu.json"]
    for part in shown.tables:
        assert all(column(row) is not None for row in part.rows(found) for column in part.columns.values())
    assert [item["what"] for item in found["targets"] if not item["met"] and "a second" not in item["what"]] == []
