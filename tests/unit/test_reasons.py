"""Every reason of names.py is written by the reconcile loop in the scenarios, where docs/operations.md says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gemmatune_api.names import Reason
from tests.support.recorder import OPTION, makes_phase
from tools.operations import ATTEMPT, shown

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/unit/test_scenarios*.py"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Reason -> places, from a run of the scenarios of its own: the answer does not depend on what else runs."""
    file = tmp_path_factory.mktemp("recorded") / "reasons.json"
    plugin = ["-p", "tests.support.recorder", OPTION, str(file), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugin, *SCENARIOS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return {reason: set(places) for reason, places in json.loads(file.read_text()).items()}


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_the_reason_is_written_where_the_handbook_says(reason: Reason, recorded: dict[str, set[str]]) -> None:
    assert reason in recorded, "no scenario provokes it"
    places = {place for place in recorded[reason] if place == ATTEMPT or makes_phase(place)}
    assert places == set(shown(reason)), "the scenarios, or tools/operations.py, lack a place"


def test_nothing_else_is_written(recorded: dict[str, set[str]]) -> None:
    assert set(recorded) <= set(Reason)
