"""The generated pages of docs/: current, complete, and refusing what they cannot show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gemmatune_api import generate
from gemmatune_api.names import ConditionType, ExitCode, Phase, Reason
from tools import docs, operations, performance, sections, sidebyside

ROOT = Path(__file__).parents[2]
MEASURED = {"commit": "a" * 40, "date": "2026-03-01", "machine": "a machine", "measurements": []}


def test_the_pages_are_current() -> None:
    assert generate.difference(ROOT, docs.files()) == ""


def test_every_name_has_its_row() -> None:
    text = operations.document()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for name in (*Reason, *Phase, *ConditionType):
        assert any(row.startswith(f"| `{name}` |") for row in rows), name
    for code in ExitCode:
        assert any(row.startswith(f"| {code.value} |") for row in rows), code


def test_every_metric_that_the_text_names_is_in_the_table() -> None:
    text = operations.document()
    named = set(re.findall(r"gemmatune_[a-z_]+", text))
    assert named == {name for name in named if f"| `{name}` |" in text}
    assert named


def test_a_reason_stands_in_one_group() -> None:
    groups = [*operations.CAUSES, *operations.WAITS, *operations.REFUSALS, *operations.PROGRESS]
    assert sorted(groups) == sorted(Reason)


def test_a_result_without_a_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(json.dumps(MEASURED))
    with pytest.raises(ValueError, match=r"odd\.json"):
        performance.document(tmp_path)


@pytest.mark.parametrize("name", ["machine", "commit", "date"])
def test_a_result_says_where_it_comes_from(tmp_path: Path, name: str) -> None:
    (tmp_path / "memory.json").write_text(json.dumps({**MEASURED, name: ""}))
    with pytest.raises(ValueError, match=name):
        performance.document(tmp_path)


def test_the_figures_are_those_of_the_file(tmp_path: Path) -> None:
    row = {"method": "lora", "rows": 3, "length": 64, "checkpointing": True, "peak": 200 * 2**20}
    found = {**MEASURED, "measurements": [{**row, "plan": {"total": 250 * 2**20}}]}
    (tmp_path / "memory.json").write_text(json.dumps(found))
    text = performance.document(tmp_path)
    assert "| lora | 3 x 64 | yes | 200 | 250 | 1.25 |" in text
    assert "a machine; commit aaaaaaa, 2026-03-01." in text


@pytest.mark.parametrize(
    ("values", "text"),
    [([3.0, 1.0, 2.0], "2.00 (1.00 to 3.00)"), ([1.5], "1.50"), ([1.0, 2.0], "1.50 (1.00 to 2.00)")],
)
def test_median_and_spread(values: list[float], text: str) -> None:
    assert sections.spread(values) == text


def test_backends_side_by_side() -> None:
    """A column for each backend; of torch, which no mesh divides, no line of eight devices."""
    line = {"optimizer": "adamw_torch", "compile_seconds": 40, "compilations": 3, "weights": 2**20, "whole": 8 * 2**20}
    line |= {"peak": 3 * 2**30, "seconds": [1.0, 2.0, 4.0]}
    lines = [{**line, "arm": arm, "devices": n} for arm in ("xla", "keras") for n in (1, 8)]
    lines += [{**line, "arm": "torch", "devices": 1, "compilations": 0}, {**line, "arm": "xla", "devices": 8} | {
        "optimizer": "adafactor", "seconds": [9.0]}]  # fmt: skip
    losses = [{"adapter": name, "held_out": 2.0, "apart": 0.001} for name in ("none: the base", *sidebyside.BACKENDS)]
    rows = sidebyside.compared({"lines": lines}, {"results": losses}).splitlines()
    assert rows[0] == "| measured | `torch` | `xla` | `keras` |"
    assert rows[2].endswith("| 2.00 (1.00 to 4.00) | 2.00 (1.00 to 4.00) | 2.00 (1.00 to 4.00) |")
    assert rows[3].endswith("| - | 2.00 (1.00 to 4.00) | 2.00 (1.00 to 4.00) |")
    assert rows[4].endswith("| - | 40 | 40 |")
    assert rows[8].endswith("| - | 1 of 8 MiB | 1 of 8 MiB |")
    assert rows[9].endswith("| 2.0000 | 2.0000 (+0.10%) | 2.0000 (+0.10%) |")


def test_a_page_without_a_place_for_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / sidebyside.PAGE).write_text("# Backends\n")
    with pytest.raises(ValueError, match=r"docs/backends\.md has no <!-- measured"):
        sidebyside.document(tmp_path)
