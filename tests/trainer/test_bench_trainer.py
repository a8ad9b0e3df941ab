"""The trainer's benchmark still works: two arms on a tiny model, from their processes to the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import trainer, trainer_verdict
from tests.support.soak import only_in_soak
from tools import bars, performance


@pytest.mark.slow
def test_two_arms_from_their_processes_to_the_table(tiny_model: Callable[[str], Path]) -> None:
    plan = replace(trainer.QUICK, arms=("trainer", "ours"))
    found = trainer.benchmark(plan, tiny_model("3"), set())
    theirs, ours = found["arms"]
    assert (theirs["arm"], ours["arm"]) == ("trainer", "ours")
    assert ours["nll"] == pytest.approx(theirs["nll"], rel=0.01)
    assert 0.8 < ours["work"] < theirs["work"]
    for line in found["arms"]:
        assert line["live_bytes"] > 0
        assert 0 < line["above_load"] < line["peak_rss"]
        assert 0 < line["imported"] < line["first_step"]
        assert line["nll"] != line["base_nll"]
        assert len(line["utilisation"]) == plan.repeats
    shown = trainer.table(found["arms"], found["targets"])
    assert "transformers.Trainer" in shown
    assert len(found["targets"]) == 6
    assert "documents" not in str(found["raw"])


@only_in_soak
def test_what_a_whole_run_loses(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Waiting, steps that an upload slows, and samples: each is measured, and the target is for all of them."""
    found = trainer.whole_run(replace(trainer.QUICK, whole=12), tiny_model("3"), tmp_path)
    assert 0 < found["first_step_begins"] < found["first_step"]
    assert found["waiting"] > 0
    assert found["samples"] > 0
    assert found["slowed"] >= 0
    assert found["lost"] == pytest.approx(found["waiting"] + found["slowed"] + found["samples"])
    (target, _) = trainer_verdict.targets([], [], found)
    assert target["what"] == "Step time lost to checkpoints, progress and samples"
    assert target["measured"] == [100 * found["lost"]]
    assert target["met"] == (found["lost"] <= 0.03)


def test_other_labels_are_noticed() -> None:
    row = [[2, 5, 6], [-100, 5, 6]]
    trainer.same_labels({"trl": [row], "ours": [row]})
    with pytest.raises(trainer.Failed, match="other tokens or labels"):
        trainer.same_labels({"trl": [row], "ours": [[[2, 5, 6], [-100, -100, 6]]]})


def part(label_rate: float, commit: str) -> dict[str, Any]:
    line = {"data": "quotes", "precision": "bf16", "name": "gemmatune", "arm": "ours"}
    about = {"commit": commit, "date": "2026-01-01", "machine": "here"}
    return {
        "parts": {"quotes-bf16": about},
        "arms": [{**line, "label_tokens_per_second": [label_rate, label_rate + 2], "peak_rss": 3 * 2**20}],
        "raw": [line],
        "quality": [],
        "whole": None,
    }


def test_a_part_measured_anew_takes_the_place_of_the_old_one_only() -> None:
    old = part(100.0, "a")
    old["parts"]["instruct-fp32"] = old["parts"]["quotes-bf16"]
    old["arms"].insert(0, {**old["arms"][0], "data": "instruct", "precision": "fp32"})
    old["quality"] = [{"recovered": 0.9}]
    found = trainer.joined(old, part(200.0, "b"))
    assert [line["data"] for line in found["arms"]] == ["quotes", "instruct"]
    assert found["arms"][0]["label_tokens_per_second"] == [200.0, 202.0]
    assert {name: one["commit"] for name, one in found["parts"].items()} == {"quotes-bf16": "b", "instruct-fp32": "a"}
    assert [target["measured"] for target in found["targets"]] == [[0.9]]


def test_the_picture_shows_every_arm_with_its_figures() -> None:
    found = part(100.0, "a")
    svg = bars.draw(performance.arm_groups(found), "Bars")
    root = ElementTree.fromstring(svg)
    texts = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [
        "Speed: quotes, bf16", "gemmatune", "101 label-tokens/s", "Peak: quotes, bf16", "gemmatune", "3 MiB"
    ]  # fmt: skip
