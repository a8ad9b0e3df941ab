"""The benchmark of preparations measures one, and its table is made."""

from __future__ import annotations

from bench import prepare as bench
from tests.support.standin import write_small_model
from tools.performance import document


def test_the_benchmark_measures_a_preparation(tmp_path):
    write_small_model(tmp_path / "model", "3")
    found = bench.measure(60, tmp_path / "model")
    assert found.tokens > found.rows == 60
    assert found.peak > 50 << 20
    bench.write([found], tmp_path / "results" / "prepare.json")
    text = document(tmp_path / "results")
    assert "| 60 |" in text
    assert "make bench-prepare" in text
