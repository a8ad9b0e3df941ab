"""Writes the documents that follow from more than the API: `python -m tools.docs [--check]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gemmatune_api import generate
from tools import dashboard, operations, performance, sidebyside, troubleshooting

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"


def files() -> Mapping[str, str]:
    """Text of each document by its path below the project's root."""
    drawn = {f"docs/pictures/{name}": text for name, text in performance.pictures(RESULTS).items()}
    return {
        "docs/operations.md": operations.document(),
        "docs/performance.md": performance.document(RESULTS),
        "docs/troubleshooting.md": troubleshooting.document(),
        sidebyside.PAGE: sidebyside.document(ROOT),
        dashboard.PATH: dashboard.document(),
        **drawn,
    }


if __name__ == "__main__":
    raise SystemExit(
        generate.main(files(), "Write the handbook of operations, the figures of the benchmarks and the dashboard.")
    )
