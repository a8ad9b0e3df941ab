"""History, divergence, charts, report and model card: what people read."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import catalog
from gemmatune_api.spec import TextFormat
from gemmatune_api.status import DataStatus
from gemmatune_trainer import card, report
from gemmatune_trainer.backends.base import Step, Tally, Verification
from gemmatune_trainer.charts import Series, chart, number, ticks, whole_ticks
from gemmatune_trainer.data.tokenize import TOKENIZER_FILE, RowTokenizer
from gemmatune_trainer.divergence import FACTOR, PATIENCE_STEPS, LossWatch
from gemmatune_trainer.generation import terminator_ids, write_generation_config
from gemmatune_trainer.history import Evaluated, History, Point, thin
from gemmatune_trainer.manifest import serve_command
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ownership import Claim
from gemmatune_trainer.result import Result
from gemmatune_trainer.run import _completed
from tests.support.standin import write_small_model, write_tokenizer
from tests.trainer.conftest import run_config

NASTY = "<script>alert('x')</script> | `a` & \"b\" {{ 7 * 7 }}"


def step(number: int, loss: float = 2.0, seconds: float = 0.5) -> Step:
    return Step(number, loss, 1.0, 1e-4, tokens=100, labelled_tokens=60, seconds=seconds, memory=2 << 30)


@pytest.fixture
def result(tmp_path: Path) -> Result:
    write_small_model(tmp_path / "model", "3")
    config = run_config(tmp_path / "model", tmp_path / "data.jsonl", "gs://bucket/runs/quotes")
    dataset = config.dataset.model_copy(update={"uri": f"file:///{NASTY}", "text": TextFormat(template=NASTY)})
    run = config.run.model_copy(update={"name": NASTY})
    config = config.model_copy(update={"run": run, "dataset": dataset, "attempt": 3})
    history = History(1)
    history.begin(1, 0, "cuda")
    history.begin(3, 240, "cpu")
    for index in range(1, 600):
        history.add(step(index, 4.0 / math.sqrt(index)))
    history.evaluations += [Evaluated(0, 4.5), Evaluated(300, 1.25), Evaluated(599, 1.75)]
    return Result(
        config=config,
        claim=Claim("uid", "default", "quotes", "hash", "data", "rev"),
        files=ModelFiles(config.model.uri, "rev", tmp_path / "model"),
        data=DataStatus(hash="data", rows=326, tokens=10_000, labelled_tokens=9_000, eval_rows=20),
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
        self.classes: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes += [str(value) for name, value in attrs if name == "class"]
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_tells_what_was_compiled_and_padded(result: Result) -> None:
    assert "Compilations" not in report.render(result), "torch compiles nothing"
    result.tally = Tally(compilations=3, late=0, seconds=41.25, padding=0.1234)
    page = report.render(result)
    assert "3 in 41.2 s, none after step 2" in page
    assert "12.3% of the computed tokens" in page
    result.tally = Tally(compilations=5, late=2, seconds=41.25, padding=0.0)
    assert "5 in 41.2 s, 2 after step 2" in report.render(result)


def test_the_report_is_whole_and_opens_offline(result: Result) -> None:
    page = report.render(result)
    found = Tags()
    found.feed(page)
    assert found.tags.count("svg") == 5
    assert found.tags.count("polyline") == 6, "training and evaluation in one chart"
    assert not found.links
    assert not re.search(r"@import|url\(|https?:", page)
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
        "90.02 → 3.49",
        "9,000 (90.0%)",
        "2 GiB",
        f"file:///{NASTY}",
        "left no checkpoint",
        "training.learningRate",
    ):
        assert words in text, words
    assert "<script" not in page
    assert "<b&gt;" not in page, "nothing is escaped twice"
    assert not result.warnings
    assert "note" not in found.classes


def test_attempts_of_a_resource_that_was_created_again(result: Result) -> None:
    """Their numbers begin anew: each has its own row, in order."""
    result.history = History(1)
    for attempt, begin in ((1, 0), (3, 100), (1, 250)):
        result.history.begin(attempt, begin, "cuda")
    result.total_steps = 400
    found = [(attempt, begin, end) for attempt, _, _, begin, end in report.attempts(result)]
    assert found == [
        ("1", "0", "100"),
        ("2", "", "left no checkpoint"),
        ("3", "100", "250"),
        ("1", "250", "400"),
    ]


def test_the_report_says_what_became_of_rows_for_evaluation(result: Result) -> None:
    names = dict(report.data(result))
    assert names["Rows kept for evaluation"] == "20"
    assert "Rows for evaluation dropped as too long" not in names, "a preparation of before did not count them"
    result.data = result.data.model_copy(
        update={"eval_truncated_rows": 3, "eval_cut_tokens": 1400, "eval_dropped_rows": 0}
    )
    names = dict(report.data(result))
    assert names["Of these cut at maxLength"] == "3"
    assert names["Tokens cut off these"] == "1,400"
    assert names["Rows for evaluation dropped as too long"] == "0"


def test_an_adapter_that_is_no_better_is_told(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    log = SimpleNamespace(warning=lambda event, warning: logged.append(warning))
    monkeypatch.setattr("gemmatune_trainer.run.log", log)
    result.history.evaluations[1] = Evaluated(300, 4.75)
    found = Tags()
    found.feed(report.render(result))
    (warning,) = result.warnings
    assert "4.75" in warning
    assert "4.5" in warning
    assert "note" in found.classes
    assert warning in "".join(found.text)
    assert warning in card.render(result)
    message = _completed(result.config, None, 599, result)
    assert logged == [warning]
    assert "did not fall" in message.message
    assert message.remedy


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
    assert " && gcloud storage cp -r 'gs://bucket/runs/quotes/adapter/*' " in command
    assert "--max-lora-rank 8" in command
    assert "'\\''" in command or '"' in command  # the name is quoted for the shell


def test_history_means_over_the_steps_between_points(tmp_path: Path) -> None:
    history = History(2)
    assert history.add(step(1, 4.0)) is None
    point = history.add(step(2, 2.0))
    assert point == Point(2, 3.0, 1e-4, 1.0, 200.0, memory=2 << 30)
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
    drawn = chart([Series("", [1, 2, 3], [1.0, math.nan, 2.0], '"><b>')], "a < b", marks=[2, 9])
    assert "nan" not in drawn
    assert "<b>" not in drawn
    assert drawn.count('class="mark"') == 1, "what lies outside is not drawn"
    assert 'aria-label="a &lt; b"' in drawn
    assert chart([Series("", [1], [math.inf])], "x") == ""
    assert "<circle" in chart([Series("", [1], [1.0])], "x")
    assert whole_ticks(0, 599) == [0, 100, 200, 300, 400, 500]
    assert whole_ticks(1, 4) == [1, 2, 3, 4]
    assert [number(value) for value in (0, 0.0002, 12345, 1234567, 3.14159)] == [
        "0",
        "0.0002",
        "12,345",
        "1.2e+06",
        "3.142",
    ]


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


@pytest.mark.parametrize(
    ("generation", "wanted"), [("1", [1, 107]), ("2", [1, 107]), ("3", [1, 106]), ("4", [1, 106, 50])]
)
def test_generation_ends_at_every_published_terminator(generation: str, wanted: list[int], tmp_path: Path) -> None:
    write_tokenizer(tmp_path, generation)
    assert terminator_ids(RowTokenizer.load(tmp_path / TOKENIZER_FILE, catalog.rules(generation))) == wanted


def test_the_generation_config_keeps_what_the_base_says(tmp_path: Path) -> None:
    write_small_model(tmp_path / "base", "3")
    (tmp_path / "base/generation_config.json").write_text(
        json.dumps({"top_k": 64, "eos_token_id": 1, "bos_token_id": 2})
    )
    write_generation_config(ModelFiles("file:///base", "rev", tmp_path / "base"), tmp_path)
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == {"top_k": 64, "eos_token_id": [1, 106], "bos_token_id": 2, "pad_token_id": 0}


def test_another_vocabulary_ends_at_its_own_tokens(tmp_path: Path) -> None:
    """A copy of a model whose tokens were renumbered."""
    write_tokenizer(tmp_path, "2")
    assert terminator_ids(RowTokenizer.load(tmp_path / TOKENIZER_FILE, catalog.rules("3"))) == [1, 107]
