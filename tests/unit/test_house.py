"""The habits of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from gemmatune_api.names import REASONS, ExitCode, Reason

ROOT = Path(__file__).parents[2]
PACKAGES = (
    ROOT / "api/gemmatune_api",
    ROOT / "operator/gemmatune_operator",
    ROOT / "cli/gemmatune_cli",
    ROOT / "trainer_image/gemmatune_trainer",
)
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
FILE_LINES = 420
FUNCTION_LINES = 60
TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    if name and (ROOT / name).is_file()
]


def test_operator_folder_is_no_package() -> None:
    assert not (ROOT / "operator/__init__.py").exists(), "it would shadow the standard library's operator"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_has_purpose_and_size(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module opens with a sentence on its purpose"
    assert source.count("\n") <= FILE_LINES, "the file holds more than one idea"
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not long


def test_nothing_is_left_open() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b|pragma: no cover")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TRACKED
        if path.suffix in {".py", ".sh", ".md", ".yaml", ".toml"} and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found


POLICIES_READ_NO_WORLD = {"time", "random", "os", "kubernetes", "kopf", "asyncio", "requests", "socket"}


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "operator/gemmatune_operator").glob("policies/*.py"))
    + sorted((ROOT / "operator/gemmatune_operator").glob("manifests/*.py"))
    + [ROOT / "operator/gemmatune_operator/diagnose.py"],
    ids=lambda path: path.stem,
)
def test_policies_are_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & POLICIES_READ_NO_WORLD
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not {call for call in calls if call.endswith((".now", ".utcnow", ".today")) or call == "open"}


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_reason_is_explained_and_documented(reason: Reason) -> None:
    """That it is provoked: test_reasons.py."""
    assert REASONS[reason].meaning.endswith(".")
    assert f"`{reason.value}`" in (ROOT / "docs/api.md").read_text()


def test_exit_codes_are_provoked() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__))
    missing = [code.name for code in ExitCode if f"ExitCode.{code.name}" not in tests]
    assert not missing
