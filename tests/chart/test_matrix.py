"""The chart's text for several sets of values, exactly."""

from __future__ import annotations

import pytest

from tests.chart.matrix import CASES, FOLDER, file_of, rendered

pytestmark = pytest.mark.usefixtures("helm")


@pytest.mark.parametrize("case", CASES)
def test_the_chart_renders_as_it_did(case: str) -> None:
    assert rendered(case) == file_of(case).read_text(encoding="utf-8"), "python -m tests.chart.matrix; read the diff"


def test_no_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == CASES.keys()
