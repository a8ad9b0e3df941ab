"""gft validate: every problem of every document, with path, value and remedy, and an exit code for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gemmatune_cli.main import app

GOOD = """apiVersion: gemmatune.dev/v1alpha1
kind: GemmaFineTune
metadata: {name: quotes}
spec:
  model: {uri: "hf://google/gemma-2-2b"}
  dataset: {uri: "gs://my-data/quotes.jsonl", text: {template: "{quote}"}}
  output: {uri: "gs://my-bucket/quotes"}
  accelerator: {gpu: {type: nvidia-l4}}
"""
BAD = (
    GOOD.replace("name: quotes", "name: bad")
    .replace("nvidia-l4", "l4")
    .replace('text: {template: "{quote}"}', "maxLength: 8")
)


def validate(*arguments: str, input: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["validate", *arguments], input=input)
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    return file


def test_a_valid_file(good: Path) -> None:
    code, output = validate(str(good))
    assert code == 0
    assert output == f"{good}: GemmaFineTune quotes: valid (qlora on gpu)\n"


def test_quiet_says_nothing_of_what_is_valid(good: Path) -> None:
    assert validate("--quiet", str(good)) == (0, "")


def test_every_problem_is_named_with_value_and_remedy(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    code, output = validate(str(file))
    assert code == 1
    assert f"{file}: GemmaFineTune bad: 2 problems" in output
    assert "spec.dataset.maxLength: " in output
    assert "(found 8)" in output
    assert "spec.accelerator.gpu.type: " in output
    assert '(found "l4")' in output
    assert "nvidia-l4" in output


def test_several_documents_and_other_kinds_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text("\n---\n".join(["apiVersion: v1\nkind: Secret\nmetadata: {name: hf-token}\n", GOOD, BAD]))
    code, output = validate(str(file))
    assert code == 1
    assert f"{file} (document 1): Secret hf-token: another kind, not looked at" in output
    assert f"{file} (document 2): GemmaFineTune quotes: valid" in output
    assert f"{file} (document 3): GemmaFineTune bad: 2 problems" in output


def test_folder_and_standard_input(good: Path) -> None:
    assert validate(str(good.parent))[0] == 0
    code, output = validate("-", input=BAD)
    assert code == 1
    assert output.startswith("standard input: GemmaFineTune bad: 2 problems")


def test_numbers_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "rate.yaml"
    file.write_text(GOOD + "  training: {learningRate: 2e-4, maxSteps: 010}\n")
    assert validate(str(file))[0] == 0


def test_what_is_not_supported_yet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tpu.yaml"
    file.write_text(GOOD.replace("gpu: {type: nvidia-l4}", "tpu: {type: tpu-v5-lite-podslice, topology: 4x4}"))
    code, output = validate(str(file))
    assert code == 1
    assert "is not verified: no mesh over several hosts has run" in output


def test_a_wrong_version_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "version.yaml"
    file.write_text(GOOD.replace("v1alpha1", "v2"))
    code, output = validate(str(file))
    assert code == 1
    assert "apiVersion" in output


def test_an_object_without_kind_or_version_is_not_valid(tmp_path: Path) -> None:
    file = tmp_path / "kindless.yaml"
    file.write_text(GOOD.replace("kind: GemmaFineTune\n", ""))
    code, output = validate(str(file))
    assert code == 1
    assert "kind: is required\n    Write kind: GemmaFineTune." in output
    file.write_text(GOOD.replace("apiVersion: gemmatune.dev/v1alpha1\n", ""))
    assert "apiVersion: is required" in validate(str(file))[1]


def test_what_cannot_be_read_does_not_hide_the_rest(good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"{BAD}\n---\nhello\n")
    code, output = validate(str(tmp_path / "none.yaml"), str(bad), str(good))
    assert code == 1
    assert "none.yaml: cannot be read: No such file or directory" in output
    assert f"{bad} (document 1): GemmaFineTune bad: 2 problems" in output
    assert f'{bad} (document 2): holds "hello" where an object is expected' in output
    assert f"{good}: GemmaFineTune quotes: valid" in output
