"""`gft samples`, `report`, `compare` and `serve-command`: what they show of finished runs, and their errors."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import requests
from typer.testing import CliRunner, Result

from gemmatune_api import serving
from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_api.serving import Served
from gemmatune_cli.main import app
from tests.support.fakegcs import FakeGcs
from tests.support.resources import resource

NASTY = "[bold]<script>[/bold]"
PAGE = "<!doctype html>äöü"
Write = Callable[..., Path]


def gft(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def error(*arguments: str) -> str:
    found = gft(*arguments)
    assert found.exit_code == 1, found.output
    assert "Traceback" not in found.output
    return " ".join(found.stderr.split())


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "run": {"name": "quotes", "namespace": "default", "uid": "u"},
        "attempt": 1,
        "dataHash": "d1",
        "model": {"uri": "hf://google/gemma-2-2b", "revision": "c0ffee", "name": "gemma-2-2b"},
        "base": {"name": "google/gemma-2-2b", "revision": "c0ffee"},
        "method": {"kind": "lora", "rank": 12, "text": "LoRA, rank 12, alpha 24"},
        "chat": True,
        "settings": {"training.learningRate": "0.0002", "lora.rank": "12", "output.uri": "gs://a/b"},
        "data": {"rows": 2508, "labelledTokens": 80732},
        "samples": [{"prompt": f"Who {NASTY}?", "before": "Nobody.", "after": "A poet."}],
        "tokensPerSecond": 1234.5,
        "memory": 3 * 2**30,
        "steps": 100,
        "step": 80,
        "firstLoss": 4.5,
        "loss": 2.5,
        "evaluations": [{"step": 0, "loss": 4.25}, {"step": 80, "loss": 2.125}, {"step": 100, "loss": 2.75}],
        "artifacts": {"adapter": "gs://bucket/quotes/adapter"},
        "versions": {"peft": "0.21.2"},
        **changes,
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str = "out", **changes: Any) -> Path:
        folder = tmp_path / name
        (folder / "report").mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest(**changes)))
        (folder / "report/report.html").write_text(PAGE, encoding="utf-8")
        return folder

    return make


def test_samples(write: Write) -> None:
    lines = [" ".join(line.split()) for line in gft("samples", str(write())).output.splitlines() if line.strip()]
    assert lines == [f"prompt Who {NASTY}?", "before Nobody.", "after A poet."]


def test_samples_before_the_end_are_those_of_the_base(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    asked = {"prompts": ["Who?"], "maxNewTokens": 4, "answers": ["Nobody."]}
    (tmp_path / "samples/before.json").write_text(json.dumps(asked))
    assert gft("samples", tmp_path.as_uri()).output.split() == ["prompt", "Who?", "before", "Nobody."]
    (tmp_path / "samples/before.json").unlink()
    assert "has no samples" in error("samples", tmp_path.as_uri())


def test_a_run_by_its_file(write: Write, tmp_path: Path) -> None:
    file = tmp_path / "quotes.yaml"
    changes = {"spec.output.uri": write().as_uri()}
    file.write_text(json.dumps(resource(changes=changes)))
    assert "A poet." in gft("samples", str(file)).output
    assert gft("report", str(file)).output.strip() == str(tmp_path / "out/report/report.html")


def test_a_run_whose_output_is_the_clusters_default(write: Write, tmp_path: Path) -> None:
    file = tmp_path / "quotes.yaml"
    document = resource(changes={"spec.output": None})
    file.write_text(json.dumps(document))
    assert "where its results go is not decided yet" in error("samples", str(file))
    file.write_text(json.dumps({**document, "status": {"resolved": {"output": {"uri": write().as_uri()}}}}))
    assert "A poet." in gft("samples", str(file)).output


def test_report(write: Write, tmp_path: Path) -> None:
    folder = write()
    copy = tmp_path / "copy.html"
    assert gft("report", str(folder), "-o", str(copy)).output.strip() == str(copy)
    assert copy.read_text(encoding="utf-8") == PAGE
    assert gft("report", str(folder), "-o", "-").output.strip() == PAGE
    (folder / "report/report.html").unlink()
    assert "report.html does not exist" in error("report", str(folder))


def test_compare(write: Write) -> None:
    one = write("one")
    other = write(
        "two",
        settings={"training.learningRate": "0.001", "lora.rank": "12", "output.uri": "gs://c/d"},
        loss=2.25,
        samples=[{"prompt": f"Who {NASTY}?", "before": "Nobody.", "after": "A king."}],
        warnings=["It is no better."],
        versions={"peft": "0.22.0"},
    )
    found = gft("compare", str(one), str(other))
    assert found.exit_code == 0, found.output
    rows = [" ".join(line.split()) for line in found.output.splitlines()]
    for row in (
        "training.learningRate 0.0002 0.001",
        "version of peft 0.21.2 0.22.0",
        "loss of the last point 2.5 2.25",
        "evaluation loss of the base 4.25 4.25",
        "evaluation loss of the result 2.125 2.125",
        "tokens a second (median) 1234 1234",
        "highest memory, GiB 3 3",
        "warnings - It is no better.",
        f"prompt Who {NASTY}?",
        "after A poet. A king.",
    ):
        assert row in rows, (row, found.output)
    assert not any(row.startswith(("lora.rank", "output.uri")) for row in rows), "what is equal, or always differs"


FILES = [{"name": "model/model.safetensors", "size": 1, "sha256": "00"}]


@pytest.mark.parametrize("source", [{"source": {"name": "gemma-2-2b", "revision": "c0ffee"}}, {}])
def test_full_tuning(write: Write, source: dict[str, Any]) -> None:
    """Its manifest lists the files of the result as `model`; those before `source` was there name the base alone."""
    full = {"model": FILES, "method": {"kind": "full", "text": "full"}, "artifacts": {"model": "gs://bucket/q/model"}}
    folder = str(write("full", **full, **source))
    for command in ("samples", "report", "serve-command"):
        found = gft(command, folder)
        assert found.exit_code == 0, found.output
    shown = gft("compare", folder, str(write("adapter")))
    assert shown.exit_code == 0, shown.output
    rows = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert f"model {'gemma-2-2b' if source else 'google/gemma-2-2b'} gemma-2-2b" in rows
    assert not any(row.startswith("model revision") for row in rows), "it is the same"


def test_compare_says_that_nothing_differs(write: Write) -> None:
    folder = str(write())
    assert "none" in gft("compare", folder, folder).output.split("Results")[0]


def test_serve_commands(write: Write) -> None:
    folder = write()
    command = gft("serve-command", str(folder)).output
    adapter = f"{folder}/adapter"
    assert shlex.split(command) == [
        "vllm", "serve", "google/gemma-2-2b", "--revision", "c0ffee", "--enable-lora", "--max-lora-rank", "16",
        "--lora-modules", f"quotes={adapter}", "--generation-config", adapter,
        "--chat-template", f"{adapter}/chat_template.jinja",
    ]  # fmt: skip
    python, option, program, path, _ = shlex.split(gft("serve-command", str(folder), "--with", "transformers").output)
    assert (python, option, path) == ("python", "-c", adapter)
    compile(program, "program", "exec")
    assert "apply_chat_template" in program
    assert "has no merged weights" in error("serve-command", str(folder), "--with", "merged")
    (folder / "merged").mkdir()
    (folder / "merged/manifest.json").write_text("{}")
    merged = gft("serve-command", str(folder), "--with", "merged").output
    assert shlex.split(merged) == ["vllm", "serve", f"{folder}/merged", "--served-model-name", "quotes"]


def test_a_bucket_is_copied_before_it_is_served() -> None:
    served = Served(name="q", base="google/gemma-2-2b", where="gs://b/it's/adapter", rank=8)
    words = shlex.split(serving.vllm(served))
    assert words[:8] == ["mkdir", "-p", "./q", "&&", "gcloud", "storage", "cp", "-r"]
    assert words[8:10] == ["gs://b/it's/adapter/*", "./q"]
    whole = shlex.split(serving.vllm(Served(name="q", base="x", where="file:///out/model", kind="model")))
    assert whole == ["vllm", "serve", "/out/model", "--served-model-name", "q"]
    program = shlex.split(serving.transformers(Served(name="q", base="x", where="file:///o/model", kind="model")))[2]
    assert "peft" not in program
    compile(program, "program", "exec")


def test_a_folder_whose_name_is_written_otherwise_in_a_uri(tmp_path: Path) -> None:
    """Programs open paths, which know of no percent signs."""
    where = tmp_path / "Müller runs" / "50%"
    served = Served(name="q", base=(where / "base").as_uri(), where=(where / "adapter").as_uri())
    words = shlex.split(serving.vllm(served))
    assert words[:3] == ["vllm", "serve", f"{where}/base"]
    assert f"q={where}/adapter" in words
    assert words[words.index("--generation-config") + 1] == f"{where}/adapter"
    assert f"{where}/adapter" in shlex.split(serving.transformers(served))
    merged = serving.merged(Served(name="q", base="b", where="x", merged=(where / "merged").as_uri()))
    assert f"{where}/merged" in shlex.split(merged or "")
    images = Served(name="q", base=served.base, where=served.where, images=True)
    assert f"from_pretrained({str(where / 'base')!r})" in shlex.split(serving.transformers(images))[2]


@pytest.mark.parametrize("command", ["report", "serve-command"])
def test_a_run_that_has_not_finished(command: str, tmp_path: Path) -> None:
    text = error(command, tmp_path.as_uri())
    assert "has not finished" in text
    assert "manifest.json does not exist" in text


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert "cannot be read from here" in error("samples", "s3://bucket/x")
    assert "is a folder without manifest.json" in error("samples", str(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    assert "is no JSON" in error("report", str(tmp_path))
    assert "cannot be read" in error("samples", str(tmp_path / "none.yaml"))


NOT_OURS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("run", {}, "run: Field required"),
    ("run.name", {"run": {"name": 7}}, "run.name: Input should be a valid string (found 7)"),
    ("samples", {"samples": [{"before": "x"}]}, "samples.0.prompt: Field required"),
    ("evaluations", {"evaluations": [{"step": 1}]}, "evaluations.0.loss: Field required"),
    ("settings", {"settings": ["x"]}, "settings: Input should be a valid dictionary"),
    ("artifacts", {"artifacts": "x"}, "artifacts: Input should be a valid dictionary"),
    ("memory", {"memory": "x"}, "memory: Input should be a valid number"),
    ("base", {"base": None}, "base: Input should be a valid dictionary"),
)


@pytest.mark.parametrize(("changes", "problem"), [case[1:] for case in NOT_OURS], ids=[case[0] for case in NOT_OURS])
def test_a_manifest_that_somebody_else_wrote(changes: dict[str, Any], problem: str, write: Write) -> None:
    folder = write()
    (folder / "manifest.json").write_text(json.dumps({**manifest(), **changes} if changes else {}))
    for command in (("report",), ("samples",), ("serve-command",), ("compare", str(folder))):
        text = error(*command, str(folder))
        assert "manifest.json is not what gemmatune writes: " in text
        assert problem in text


def test_samples_that_somebody_else_wrote(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for odd in ({}, {"prompts": "Who?", "answers": []}, {"prompts": [{"text": 1}], "answers": []}):
        (tmp_path / "samples/before.json").write_text(json.dumps(odd))
        assert "before.json is not what gemmatune writes: " in error("samples", tmp_path.as_uri())


@pytest.mark.parametrize("name", ["../../.config/autostart", "-h", "a/b", "a b", "", "x" * 46, "quotes\n"])
@pytest.mark.parametrize("how", ["vllm", "transformers", "merged"])
def test_a_name_that_would_be_a_path_serves_nothing(name: str, how: str, write: Write) -> None:
    folder = write(run={"name": name})
    (folder / "merged").mkdir()
    (folder / "merged/manifest.json").write_text("{}")
    found = gft("serve-command", str(folder), "--with", how)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "the manifest names the run" in found.stderr


@pytest.mark.parametrize("base", [{"name": "--config=x"}, {"name": "google/gemma", "revision": "--x"}])
def test_a_base_that_would_be_an_option_serves_nothing(base: dict[str, str], write: Write) -> None:
    assert "would be an option" in error("serve-command", str(write(base=base)))


@pytest.fixture(scope="module")
def gcs() -> Iterator[FakeGcs]:
    server = FakeGcs()
    yield server
    server.stop()


def test_a_run_in_a_bucket(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV_GCS_ENDPOINT, gcs.endpoint)
    monkeypatch.chdir(tmp_path)
    requests.post(f"{gcs.endpoint}/storage/v1/b", json={"name": "results"}, timeout=30).raise_for_status()
    for name, content in (("manifest.json", json.dumps(manifest())), ("report/report.html", PAGE)):
        where = f"{gcs.endpoint}/upload/storage/v1/b/results/o"
        params = {"uploadType": "media", "name": f"a/quotes/{name}"}
        requests.post(where, params=params, data=content.encode(), timeout=30).raise_for_status()
    assert "A poet." in gft("samples", "gs://results/a/quotes/").output
    assert gft("report", "gs://results/a/quotes/manifest.json").output.strip() == "quotes-report.html"
    assert (tmp_path / "quotes-report.html").read_text(encoding="utf-8") == PAGE
    assert "has not finished" in error("report", "gs://results/b")
    assert "gcloud storage cp" in gft("serve-command", "gs://results/a/quotes").output
    monkeypatch.setenv(ENV_GCS_ENDPOINT, "http://127.0.0.1:9")
    assert "the storage does not answer" in error("report", "gs://results/a/quotes")


def test_without_a_login_it_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ENV_GCS_ENDPOINT, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert "gcloud auth application-default login" in error("report", "gs://results/a")


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_what_a_paligemma_left_is_asked_about_an_image(kind: Literal["adapter", "model"]) -> None:
    served = Served(name="q", base="google/it's", where="gs://b/q", kind=kind, revision="abc", images=True)
    for command in (serving.vllm(served), serving.transformers(served)):
        words = shlex.split(command)
        assert words[-3:] == ["./q", "IMAGE", "YOUR PROMPT"]
        program = words[words.index("-c") + 1]
        compile(program, "program", "exec")
        assert """AutoProcessor.from_pretrained("google/it's", revision='abc')""" in program
        assert ("peft" in program) == (kind == "adapter")
