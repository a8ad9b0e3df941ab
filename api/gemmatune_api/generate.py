"""Writes the files that follow from the models: `python -m gemmatune_api.generate [--check]`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gemmatune_api import crd, docgen, names

HEADER = "# Generated from api/gemmatune_api by `make generate`; do not edit.\n"


KEEP = {"helm.sh/resource-policy": "keep"}
"""Helm leaves the definition where it is when the chart goes: with it would go every resource."""


def files() -> Mapping[str, str]:
    """Text of each generated file by its path below the project's root."""
    definition = crd.definition()
    charted = {**definition, "metadata": {**definition["metadata"], "annotations": KEEP}}
    return {
        f"crds/{names.PLURAL}.{names.GROUP}.yaml": _yaml(definition),
        "charts/gemmatune/files/crd.yaml": _yaml(charted),
        "docs/api.md": docgen.document(),
    }


def _yaml(document: Mapping[str, Any]) -> str:
    return HEADER + yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)


def difference(root: Path, wanted: Mapping[str, str]) -> str:
    """How the files below `root` differ from the wanted ones, as a unified diff; empty where they are current."""
    found: list[str] = []
    for name, text in wanted.items():
        path = root / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        found += difflib.unified_diff(
            old.splitlines(keepends=True), text.splitlines(keepends=True), name, f"{name} (generated)"
        )
    return "".join(found)


def write(root: Path, wanted: Mapping[str, str]) -> None:
    """Writes the wanted files below `root`."""
    for name, text in wanted.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(wanted: Mapping[str, str], description: str) -> int:
    """Writes the wanted files, or compares them; 1 where `--check` finds a stale one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="only show what would change; exit 1 if anything would")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the project's root (default: here)")
    arguments = parser.parse_args()
    if not arguments.check:
        write(arguments.root, wanted)
        return 0
    stale = difference(arguments.root, wanted)
    if stale:
        sys.stdout.write(stale)
        sys.stderr.write("generated files are stale: run `make generate` and commit them\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main(files(), "Write the CRD and the reference of the API from the models."))
