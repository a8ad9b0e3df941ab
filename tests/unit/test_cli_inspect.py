"""gft inspect: what is trained and what is masked, by the trainer's own process on real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gemmatune_cli.main import app
from tests.support.standin import write_small_model

ROWS = [
    {"instruction": "Say hello.", "output": "Hello there!"},
    {"instruction": "Count.", "output": "One, two, three."},
]


@pytest.fixture
def resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A resource on a model folder of the stand-in vocabulary and two rows of instructions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    write_small_model(tmp_path / "model", "3")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "apiVersion": "gemmatune.dev/v1alpha1",
        "kind": "GemmaFineTune",
        "metadata": {"name": "hello"},
        "spec": {
            "model": {"uri": (tmp_path / "model").as_uri()},
            "dataset": {"uri": (tmp_path / "rows.jsonl").as_uri(), "instruct": {}},
            "output": {"uri": (tmp_path / "output").as_uri()},
            "accelerator": {"cpu": {}},
        },
    }


def inspect(folder: Path, resource: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
    file = folder / "hello.yaml"
    file.write_text(yaml.safe_dump(resource))
    result = CliRunner().invoke(app, ["inspect", str(file), *arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_only_the_answer_is_trained(tmp_path: Path, resource: dict[str, Any]) -> None:
    code, output, _ = inspect(tmp_path, resource, "--json")
    assert code == 0
    rows = [json.loads(line) for line in output.splitlines()]
    assert len(rows) == 2
    for row, data in zip(rows, ROWS, strict=True):
        trained = "".join(token for token, label in zip(row["tokens"], row["labels"], strict=True) if label)
        assert trained == f"{data['output']}<end_of_turn>"
    assert not (tmp_path / "output").exists()


def test_rows_for_people(tmp_path: Path, resource: dict[str, Any]) -> None:
    code, output, _ = inspect(tmp_path, resource, "-n", "1")
    assert code == 0
    assert output.startswith("Tokens are trained or masked.\n")
    assert "<start_of_turn>user\nSay hello.<end_of_turn>" in output
    assert "Count." not in output


def test_colours_tell_trained_from_masked(tmp_path: Path, resource: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, output, _ = inspect(tmp_path, resource, "-n", "1")
    trained, masked = "\x1b[1;32m", "\x1b[2m"
    assert f"{trained}trained\x1b[0m or {masked}masked\x1b[0m" in output
    _, _, shown = output.partition("row")
    assert f"{masked}<start_of_turn>" in shown
    assert f"{trained}<end_of_turn>" in shown


def test_an_error_of_the_trainer_is_a_sentence(tmp_path: Path, resource: dict[str, Any]) -> None:
    resource["spec"]["dataset"]["instruct"] = {"output": "answer"}
    code, output, error = inspect(tmp_path, resource)
    assert code == 1
    assert output == ""
    assert error.startswith("error: ")
    assert "answer" in error


def test_a_row_may_hold_any_separator_of_lines(tmp_path: Path, resource: dict[str, Any]) -> None:
    row = {"instruction": "Say\u2028hello.", "output": "Hello\u0085\u2029there!"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    code, output, _ = inspect(tmp_path, resource, "--json")
    assert code == 0
    assert "Hello\u0085\u2029there!" in json.loads(output)["text"]
    assert inspect(tmp_path, resource)[0] == 0


def test_two_resources_are_one_too_many(tmp_path: Path, resource: dict[str, Any]) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump_all([resource, {**resource, "metadata": {"name": "other"}}]))
    result = CliRunner().invoke(app, ["inspect", str(file)])
    assert result.exit_code == 1
    assert "holds several resources: hello, other" in result.stderr
