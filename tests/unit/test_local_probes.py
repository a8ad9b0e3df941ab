"""Readiness by a command, asked as often as the probe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemmatune_cli.local.probes import Readiness
from gemmatune_operator.manifests.prepare import READINESS


def probe(command: list[str], **fields: Any) -> dict[str, Any]:
    return {"readinessProbe": {"exec": {"command": command}, **fields}}


def test_without_a_probe_it_is_ready() -> None:
    assert Readiness({}, {}).look(0)
    assert Readiness({"readinessProbe": {"tcpSocket": {"port": 1}}}, {}).look(0)


def test_the_preparations_probe(tmp_path: Path) -> None:
    readiness = Readiness({"readinessProbe": READINESS}, {"/cache": tmp_path})
    assert readiness.look(0)
    (tmp_path / "waiting-for-access").touch()
    assert readiness.look(4.9), "not asked again yet"
    assert not readiness.look(5)
    (tmp_path / "waiting-for-access").unlink()
    assert not readiness.look(9.9)
    assert readiness.look(10)


@pytest.mark.parametrize(
    "container", [probe(["false"]), probe(["no-such-program"]), probe(["sleep", "60"], timeoutSeconds=0.2)]
)
def test_what_does_not_answer_with_0_is_not_ready(container: dict[str, Any]) -> None:
    assert not Readiness(container, {}).look(0)
