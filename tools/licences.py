"""docs/licences.md: the licences of what is installed beside gemmatune, by pip-licenses (`make audit`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

from gemmatune_api.docgen import table

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs/licences.md"
PROGRAM = ROOT / ".venv-audit/bin/pip-licenses"
BESIDE: Mapping[str, Path] = {"xla": ROOT / ".venv-audit/tpu", "keras": ROOT / ".venv-audit/tpu-jax"}
"""What the image of a backend has beside its environment, in a folder: the driver of TPUs."""
ENVIRONMENTS: Mapping[str, Path] = {
    "torch": Path(sys.executable),
    "xla": ROOT / ".venv-xla/bin/python",
    "keras": ROOT / ".venv-keras/bin/python",
}
"""Interpreter of each backend's environment."""
HEAD = """\
# Licences

Of the Python packages that operator, trainers and tests install from `uv.lock`, by pip-licenses; `make audit` writes \
this page. Each backend has an environment of its own: *all* have what no backend is named for. UNKNOWN is what the \
package itself does not say; libtpu, the driver of TPUs in the images of xla and keras, is a binary of \
Google's. NVIDIA's libraries, which PyTorch brings, are under NVIDIA's terms. Whoever passes on images \
has to look at both. gemmatune itself is under Apache-2.0. The model that you tune has a licence of its own.
"""


def document(program: Path, environments: Mapping[str, Path], beside: Mapping[str, Path]) -> str:
    """The page for some environments, by a pip-licenses of any of them, and for folders `beside` them.

    Errors: CalledProcessError where pip-licenses fails.
    """
    places: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, python in environments.items():
        command = [str(program), "--format=json", "--with-system", f"--python={python}"]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for item in found:
            places[item["Name"], item["Version"], item["License"].splitlines()[0]].append(name)
    for name, folder in beside.items():
        for package in distributions(path=[str(folder)]):
            said = package.metadata.get("License-Expression") or package.metadata.get("License") or "UNKNOWN"
            places[package.metadata["Name"], package.version, said].append(name)
    rows = [
        (*package, "all" if len(where) == len(environments) else ", ".join(where))
        for package, where in sorted(places.items(), key=lambda entry: (entry[0][0].lower(), entry[0][1]))
        if package[0] != "gemmatune"
    ]
    return "\n".join([HEAD, *table(("Package", "Version", "Licence", "Backend"), rows)]) + "\n"


if __name__ == "__main__":
    if missing := [str(path) for path in (*ENVIRONMENTS.values(), *BESIDE.values()) if not path.exists()]:
        raise SystemExit(f"{', '.join(missing)}: not here; run `make audit`")
    TARGET.write_text(document(PROGRAM, ENVIRONMENTS, BESIDE), encoding="utf-8")
