"""Every example can be applied as it stands: kubectl and the real API server take it, and warn of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import blocks
from tests.support.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_applied(crd: ControlPlane, namespace: str, file: Path) -> None:
    done = crd.kubectl("apply", "--validate=strict", "-n", namespace, "-f", str(file))
    assert "created" in done.stdout
    assert "Warning" not in done.stderr, done.stderr
    listed = crd.kubectl("get", "gft", "-n", namespace, "--no-headers").stdout.split()
    assert listed


def test_shapes_are_applied(crd: ControlPlane, namespace: str) -> None:
    folder = EXAMPLES[0].parent / "shapes"
    done = crd.kubectl("apply", "--validate=strict", "-n", namespace, "-f", str(folder))
    assert len(done.stdout.splitlines()) == len(list(folder.glob("*.yaml"))) > 20
    assert "Warning" not in done.stderr, done.stderr


def test_resources_of_the_pages_are_applied(crd: ControlPlane, namespace: str) -> None:
    """Those of README and quickstart, as they stand there."""
    for number, text in enumerate(blocks.resources()):
        named = text.replace("name: quotes}", f"name: quotes-{number}}}", 1)
        assert "created" in crd.kubectl("apply", "--validate=strict", "-n", namespace, "-f", "-", input=named).stdout


def test_a_changed_example_is_refused(crd: ControlPlane, namespace: str) -> None:
    text = (EXAMPLES[0].parent / "minimal.yaml").read_text(encoding="utf-8").replace("dataset:", "datasett:")
    done = crd.kubectl("apply", "-n", namespace, "-f", "-", input=text, check=False)
    assert done.returncode != 0
    assert "datasett" in done.stderr
