"""`gft` on every format of rows: what validate, plan, render and inspect show, and the run that follows from it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from typer.testing import CliRunner

from gemmatune_cli.local.session import FOLDER
from gemmatune_cli.local.store import Store
from gemmatune_cli.main import app
from tests.trainer.conftest import write_quotes

PATIENCE = 500.0
ROWS = 24

pytestmark = pytest.mark.slow


def instructions(folder: Path, quotes: list[dict[str, str]]) -> str:
    rows = [{"instruction": f"Who said: {row['text']}", "input": "", "output": row["from"]} for row in quotes]
    for number, part in enumerate((rows[:10], rows[10:])):
        (folder / f"part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return "part-*.jsonl"


def conversations(quotes: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": "One day"},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": row["from"]},
            ]
        }
        for row in quotes
    ]


def chat_parquet(folder: Path, quotes: list[dict[str, str]]) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(conversations(quotes)), folder / "chat.parquet")
    return "chat.parquet"


def chat_json(folder: Path, quotes: list[dict[str, str]]) -> str:
    (folder / "chat.json").write_text(json.dumps(conversations(quotes)))
    return "chat.json"


def comma_separated(folder: Path, quotes: list[dict[str, str]]) -> str:
    with (folder / "quotes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "from"])
        writer.writeheader()
        writer.writerows(quotes)
    return "quotes.csv"


TEXT = {"text": {"template": "Quote: {text}\nAuthor: {from}"}}


class Case(NamedTuple):
    """A way to write rows, how they are read, and what is tuned by them."""

    write: Callable[[Path, list[dict[str, str]]], str]
    format: dict[str, Any]
    method: str
    generation: str
    trained: str
    """What the first row trains, white space at its ends aside."""


CASES = {
    "instruct": Case(instructions, {"instruct": {"systemText": "Be brief."}}, "lora", "2", "yourself sky<end_of_turn>"),
    "chat-all": Case(
        chat_parquet, {"chat": {"train": "all"}}, "qlora", "3", "One day<end_of_turn>yourself sky<end_of_turn>"
    ),
    "chat-last": Case(chat_json, {"chat": {"train": "last"}}, "lora", "1", "yourself sky<end_of_turn>"),
    "text": Case(
        comma_separated,
        TEXT,
        "qlora",
        "2",
        "Quote: Rain sky Be three yourself sun Blue every\nAuthor: yourself sky<eos>",
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def write(folder: Path, model: Path, uri: str, case: Case) -> Path:
    spec = {
        "model": {"uri": model.as_uri()},
        "dataset": {"uri": f"{folder.as_uri()}/{uri}", "maxLength": 128, **case.format},
        case.method: {"rank": 4},
        "training": {"maxSteps": 3, "globalBatchSize": 4, "learningRate": 5e-3},
        "samples": {"prompts": ["Who said it?"], "maxNewTokens": 4},
        "output": {"uri": (folder / "out").as_uri()},
        "accelerator": {"cpu": {}},
    }
    document = {"apiVersion": "gemmatune.dev/v1alpha1", "kind": "GemmaFineTune", "metadata": {"name": "rows"}}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({**document, "spec": spec}))
    return file


def gft(*arguments: str) -> str:
    """Answer of a command that starts no trainer."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def process(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "gemmatune_cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # of tiny matrices, threads only wait for one another
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def quotes_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in write_quotes(folder / "rows" / "quotes.jsonl", ROWS).read_text().splitlines()]


def test_what_is_shown_is_what_is_trained(case: Case, tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    file = write(tmp_path, tiny_model(case.generation), case.write(tmp_path, quotes_of(tmp_path)), case)
    assert f"valid ({case.method} on cpu)" in gft("validate", str(file))
    assert f"{case.method} r4 on this machine's CPU: fits" in gft("plan", str(file))
    jobs = [item for item in yaml.safe_load_all(gft("render", str(file))) if item["kind"] == "Job"]
    assert [job["metadata"]["name"] for job in jobs] == ["rows-p1", "rows-t1"]

    code, output = process("inspect", "--json", "-n", "99", str(file))
    assert code == 0, output
    shown = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    first = shown[0]
    trained = "".join(token for token, label in zip(first["tokens"], first["labels"], strict=True) if label)
    assert trained.strip() == case.trained

    code, output = process("run", str(file))
    assert code == 0, output
    status = Store(tmp_path / "out" / FOLDER / "store.json").list("GemmaFineTune")[0]["status"]
    assert (status["phase"], status["progress"]["stepText"]) == ("Succeeded", "3/3")
    data = status["data"]
    assert (data["rows"], data["tokens"]) == (ROWS, sum(row["length"] for row in shown))
    assert data["labelledTokens"] == sum(sum(row["labels"]) for row in shown)
    assert {"prompt", "before", "after"} <= set(status["samples"][0])
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["r"] == 4
    assert (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text;from\nBe yourself;Me\n", "separate the cells of a .csv file by commas"),
        ("text,from\nBe, not, quoted,Me\n", "odd.csv line 2: expected 2 cells as in the header, found 4"),
        ("quote,author\nBe,Me\n", "odd.csv line 2: there is no column 'text'; the columns are 'quote', 'author'"),
    ],
)
def test_odd_columns_are_told_alike(text: str, message: str, tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    (tmp_path / "odd.csv").write_text(text)
    file = write(tmp_path, tiny_model("3"), "odd.csv", CASES["text"])
    for command in ("inspect", "run"):
        code, output = process(command, str(file))
        assert code == 1
        assert message in output
        assert "Traceback" not in output
