"""docs/licences.md names what `uv.lock` installs, and nothing else: `make audit` writes it, and is run by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {"torch": ["torch"], "xla": ["xla", "tpu"], "keras": ["keras", "tpu-jax"]}
OF_IMAGES = {"libtpu"}
"""What the extras for TPUs add in the images alone; of the rest that they would add nothing is installed."""


def listed(backend: str) -> dict[str, str]:
    """Packages of the page and their versions, of one backend."""
    found = {}
    for line in (ROOT / "docs/licences.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and (cells[3] == "all" or backend in cells[3].split(", ")):
            found[canonicalize_name(cells[0])] = cells[1]
    return found


def locked(extras: list[str]) -> dict[str, str]:
    """Packages that the lock installs here with some extras, and their versions."""
    uv = subprocess.run([ROOT / "tools/uv.sh"], capture_output=True, text=True, check=True).stdout.strip()
    command = [uv, "export", "--frozen", "--quiet", "--no-emit-project", "--no-hashes", "--no-header", "--no-annotate"]
    command += [f"--extra={extra}" for extra in ("operator", *extras)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    wanted = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in wanted
        if one.marker is None or one.marker.evaluate()
    }


@pytest.mark.parametrize("backend", EXTRAS)
def test_the_page_is_that_of_the_lock(backend: str) -> None:
    first, *others = EXTRAS[backend]
    expected = locked([first]) | {name: version for name, version in locked(others).items() if name in OF_IMAGES}
    assert listed(backend) == expected, "uv.lock has changed: run `make audit`"
