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
    module = name.replace("-", "_")
    first_words = (import_module(f"gemmatune_cli.{module}").command.__doc__ or "").split()[:3]
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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfea\x00", "is no UTF-8 text: invalid start byte at byte 0"),
        (b"kind: \x00\n", "has a character that YAML forbids: U+0000"),
        (b"spec:\n\tmodel: a\n", "Indent with spaces."),
        (b"- a\n", 'holds ["a"] where an object is expected'),
    ],
)
def test_what_is_no_file_of_resources(content: bytes, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    result = CliRunner().invoke(app, ["plan", str(file)])
    assert result.exit_code == 1
    assert problem in result.stderr


def gft(arguments: str, file: Path) -> subprocess.CompletedProcess[str]:
    """gft in a shell, with `FILE` and redirections in its arguments."""
    script = f"{sys.executable} -c 'from gemmatune_cli.main import app; app()' {arguments.replace('FILE', str(file))}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


@pytest.fixture
def resource(tmp_path: Path) -> Path:
    file = tmp_path / "quotes.yaml"
    file.write_text((Path(__file__).parents[2] / "examples" / "minimal.yaml").read_text())
    return file


def test_standard_input_that_is_closed(resource: Path) -> None:
    done = gft("validate - <&-", resource)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: standard input: is closed")


@pytest.mark.parametrize("command", ["validate", "plan", "render"])
def test_an_output_that_is_full(command: str, resource: Path) -> None:
    done = gft(f"{command} FILE >/dev/full", resource)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_reader_that_goes_away_ends_it_in_silence(resource: Path) -> None:
    done = gft("render FILE | head -1", resource)
    assert (done.stdout, done.stderr) == ("---\n", "")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no cluster: "),
        ("contexts: [", "the kubeconfig is no YAML: while parsing a flow node"),
        ("apiVersion: v1\nkind: Config\n", "no cluster: "),
    ],
)
def test_watch_without_a_cluster(
    content: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    if content:
        (tmp_path / "config").write_text(content)
    done = gft("watch quotes", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {problem}")
