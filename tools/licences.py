"""docs/licences.md: the licences of what is installed beside gemmatune, by pip-licenses (`make audit`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gemmatune_api.docgen import table

TARGET = Path(__file__).parents[1] / "docs/licences.md"
HEAD = """\
# Licences

Of the Python packages that operator, torch trainer and tests install from `uv.lock`, by pip-licenses; `make audit` \
writes this page. gemmatune itself is under Apache-2.0. The model that you tune has a licence of its own.
"""


def document(program: str, python: str) -> str:
    """The page for the environment of an interpreter, by a pip-licenses of any environment.

    Errors: CalledProcessError where pip-licenses fails.
    """
    command = [program, "--format=json", f"--python={python}"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = [(item["Name"], item["Version"], item["License"].splitlines()[0]) for item in found]
    rows = [row for row in rows if row[0] != "gemmatune"]
    return (
        "\n".join([HEAD, *table(("Package", "Version", "Licence"), sorted(rows, key=lambda row: row[0].lower()))])
        + "\n"
    )


if __name__ == "__main__":
    TARGET.write_text(document(".venv-audit/bin/pip-licenses", sys.executable), encoding="utf-8")
