"""The operator's benchmark runs from end to end on few resources; it claims nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.controlplane import ControlPlane
from tools import performance

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_quick(control_plane: ControlPlane, tmp_path: Path) -> None:
    """Every figure is there; what does not depend on the machine's speed holds; the document can be made of it."""
    output = tmp_path / "operator.json"
    command = [sys.executable, "-m", "bench.operator", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(output.read_text())
    rows = {row["what"]: row for row in found["targets"]}
    for certain in (
        "Progress writes lost",
        "Requests by the operator meanwhile",
        "Writes of a successful run, without Events",
        "Writes after a restart",
    ):
        assert rows[certain]["met"] is not False, rows[certain]
    assert {row["process"] for row in found["progress_processor"]} == {
        "operator", "floor", "load", "kube-apiserver", "etcd"
    }  # fmt: skip
    assert [row["resources"] for row in found["growth"]] == [1, 10, 20]
    assert {row["request"] for row in found["requests"]} >= {"create Job", "apply GemmaFineTune"}
    assert "Performance" in performance.document(tmp_path)
    assert all(row["what"] in done.stdout for row in found["targets"])
