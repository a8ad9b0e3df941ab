"""The trainer's benchmark still works: two arms on a tiny model, from their processes to the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench import trainer


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


def test_other_labels_are_noticed() -> None:
    row = [[2, 5, 6], [-100, 5, 6]]
    trainer.same_labels({"trl": [row], "ours": [row]})
    with pytest.raises(trainer.Failed, match="other tokens or labels"):
        trainer.same_labels({"trl": [row], "ours": [[[2, 5, 6], [-100, -100, 6]]]})
