"""gft as a whole: its help is quick and complete, its errors are sentences and not tracebacks."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gemmatune_cli.main import COMMANDS, app

HEAVY = ("gemmatune_api", "gemmatune_operator", "pydantic", "yaml", "kubernetes", "torch", "transformers")


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert name in result.output


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, typer.testing; from gemmatune_cli.main import app;"
        "assert typer.testing.CliRunner().invoke(app, ['--help']).exit_code == 0;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    first_words = (import_module(f"gemmatune_cli.{name}").command.__doc__ or "").split()[:3]
    assert " ".join(first_words) in " ".join(result.output.split())


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("gft 0.")


def test_unknown_command_is_a_wrong_command_line() -> None:
    result = CliRunner().invoke(app, ["valdate"])
    assert result.exit_code == 2
    assert "validate" in result.output


@pytest.mark.parametrize("command", ["validate", "plan", "render"])
def test_a_missing_file_is_one_sentence(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, str(tmp_path / "none.yaml")])
    assert result.exit_code == 1
    assert "none.yaml: cannot be read" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["validate", "plan", "render"])
def test_a_file_without_a_resource_is_an_error(command: str, tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    file.write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: hf-token}\n")
    result = CliRunner().invoke(app, [command, str(file)])
    assert result.exit_code == 1
    assert "no GemmaFineTune in" in result.stderr


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("apiVersion: gemmatune.dev/v1alpha1\nkind: GemmaFineTune\nspec: {model: [}\n")
    result = CliRunner().invoke(app, ["plan", str(file)])
    assert result.exit_code == 1
    assert "line 3" in result.stderr
