"""Runs tests on wrong copies of a package's module, each in a forked process: most imports are paid for once.

`python -m tests.support.mutanthost` reads a line of JSON for each case on stdin and answers with another.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

PRELOADED = (
    "gemmatune_api.fit",
    "gemmatune_api.runconfig",
    "gemmatune_api.validate",
    "hypothesis",
    "structlog",
    "tests.support.fixtures",
    "yaml",
)
"""What tests import besides the package that is made wrong."""
PACKAGE = "gemmatune_operator"
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", "--timeout=120"]


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Runs the tests of a case on the package in its folder, up to the first that fails."""
    place = Path(case["place"])
    compiled = Path(importlib.util.cache_from_source(str(place)))
    right = place.read_text(encoding="utf-8")
    with tempfile.TemporaryFile("w+") as output:
        place.write_text(case["source"], encoding="utf-8")
        compiled.unlink(missing_ok=True)  # two sources of one size and second would pass for one another
        try:
            pid = os.fork()
            if pid == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.path.insert(0, case["folder"])
                code = int(pytest.main([*OPTIONS, *case["tests"]]))
                found = getattr(sys.modules.get(PACKAGE), "__file__", "") or ""
                os._exit(code if found.startswith(case["folder"]) else pytest.ExitCode.INTERNAL_ERROR)
            _, status = os.waitpid(pid, 0)
        finally:
            place.write_text(right, encoding="utf-8")
            compiled.unlink(missing_ok=True)
        output.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "output": output.read()[-2000:]}


def main() -> None:
    """Answers the cases, in their order."""
    for name in PRELOADED:
        importlib.import_module(name)
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} was imported before it could be made wrong")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
