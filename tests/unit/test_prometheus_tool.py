"""Where Prometheus comes from, and what a machine that cannot have it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import prometheus


def test_what_path_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in prometheus.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prometheus.ensure() == tmp_path


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_without_debians_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, code: int
) -> None:
    """Outside CI the other tests run all the same."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    assert prometheus.main() == code
    told = capsys.readouterr().err
    assert "apt-get" in told
    assert "put prometheus and promtool on PATH" in told
