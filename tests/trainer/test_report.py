"""History, divergence, charts, report and model card: what people read."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api.status import DataStatus
from gemmatune_trainer import card, report
from gemmatune_trainer.backends.base import Step, Verification
from gemmatune_trainer.charts import line_chart, number, ticks
from gemmatune_trainer.divergence import FACTOR, PATIENCE_STEPS, LossWatch
from gemmatune_trainer.history import Evaluated, History, Point, thin
from gemmatune_trainer.manifest import serve_command
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ownership import Claim
from gemmatune_trainer.result import Result
from tests.support.standin import write_small_model
from tests.trainer.conftest import run_config

NASTY = "<script>alert('x')</script> | `a` & \"b\" {{ 7 * 7 }}"


def step(number: int, loss: float = 2.0, seconds: float = 0.5) -> Step:
    return Step(number, loss, 1.0, 1e-4, tokens=100, labelled_tokens=60, seconds=seconds)


@pytest.fixture
def result(tmp_path: Path) -> Result:
    write_small_model(tmp_path / "model", "3")
    config = run_config(tmp_path / "model", tmp_path / "data.jsonl", "gs://bucket/runs/quotes")
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": NASTY})})
    history = History(1)
    for index in range(1, 600):
        history.add(step(index, 4.0 / math.sqrt(index)))
    history.evaluations += [Evaluated(0, 4.5), Evaluated(300, 1.25), Evaluated(599, 1.75)]
    return Result(
        config=config,
        claim=Claim("uid", "default", "quotes", "hash", "data", "rev"),
        files=ModelFiles(config.model.uri, "rev", tmp_path / "model"),
        data=DataStatus(hash="data", rows=326, tokens=10_000, labelled_tokens=9_000),
        history=history,
        total_steps=599,
        step=300,
        prompts=[NASTY],
        before=["before " + NASTY],
        after=["after\n" + NASTY],
        verification=Verification(0.0, 1.5, 12_288),
    )


class Tags(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_whole_and_opens_offline(result: Result) -> None:
    page = report.render(result)
    found = Tags()
    found.feed(page)
    assert found.tags.count("svg") == 4
    assert not found.links
    assert "script" not in found.tags
    assert "prefers-color-scheme: dark" in page
    text = "".join(found.text)
    for words in (
        NASTY,
        "before " + NASTY,
        "LoRA, rank 4, alpha 8",
        "326",
        "4 → 0.1634",
        "4.5 → 1.25 at step 300",
        "training.learningRate",
    ):
        assert words in text, words
    assert "<script>" not in page


def test_the_card(result: Result) -> None:
    text = card.render(result)
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == result.base_name
    assert yaml.safe_load(head)["library_name"] == "peft"
    assert "from 4 to 0.1634" in body
    assert f"    after\n    {NASTY}" in body
    assert all(line.count("|") - line.count("\\|") == 3 for line in body.splitlines() if line.startswith("| "))


def test_the_serve_command(result: Result) -> None:
    command = serve_command(result, "gs://bucket/runs/quotes/adapter")
    assert command.startswith("gcloud storage cp -r 'gs://bucket/runs/quotes/adapter/*' ")
    assert "--max-lora-rank 8" in command
    assert "'\\''" in command or '"' in command  # the name is quoted for the shell


def test_history_means_over_the_steps_between_points(tmp_path: Path) -> None:
    history = History(2)
    assert history.add(step(1, 4.0)) is None
    point = history.add(step(2, 2.0))
    assert point == Point(2, 3.0, 1e-4, 1.0, 200.0)
    history.snapshot()(tmp_path)
    assert History.restored(2, tmp_path).points == [point]


@given(st.integers(0, 500), st.integers(2, 40))
def test_thinned_points_keep_first_and_last(points: int, most: int) -> None:
    whole = [Point(index, 1.0, 1.0, 1.0, 1.0) for index in range(points)]
    found = thin(whole, most)
    assert len(found) == min(points, most)
    assert found == sorted(set(found), key=lambda point: point.step)
    assert not whole or (found[0], found[-1]) == (whole[0], whole[-1])


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=50))
def test_ticks_enclose_the_values(values: list[float]) -> None:
    low, high = min(values), max(values)
    found = ticks(low, high)
    assert found == sorted(found)
    assert 2 <= len(found) <= 12
    margin = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert found[0] <= low + margin
    assert found[-1] >= high - margin


def test_charts_leave_out_what_is_no_number() -> None:
    drawn = line_chart([1, 2, 3], [1.0, math.nan, 2.0], "a < b")
    assert "nan" not in drawn
    assert 'aria-label="a &lt; b"' in drawn
    assert line_chart([1], [math.inf], "x") == ""
    assert "<circle" in line_chart([1], [1.0], "x")
    assert [number(value) for value in (0, 0.0002, 1234567, 3.14159)] == ["0", "0.0002", "1.2e+06", "3.142"]


def test_a_loss_that_is_no_number_or_stays_high_has_diverged() -> None:
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)):
        assert LossWatch([2.0]).add(loss, norm)
    watch = LossWatch([2.0] * 10)
    high = [watch.add(FACTOR * 2.0 + 0.1, 1.0) for _ in range(PATIENCE_STEPS)]
    assert not any(high[:-1])
    assert "20 steps above 3 times the running median 2" in high[-1]


def test_a_loss_that_comes_back_has_not_diverged() -> None:
    watch = LossWatch([2.0] * 10)
    for _ in range(5):
        assert not any(watch.add(50.0, 1.0) for _ in range(PATIENCE_STEPS - 1))
        assert not watch.add(2.0, 1.0)
