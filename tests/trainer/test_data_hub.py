"""Rows of datasets repositories, read from a hub on loopback by a process that knows only HF_ENDPOINT and a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from gemmatune_api.names import ENV_DATASET_TOKEN
from tests.support.hub import STRANGER, TOKEN, Hub

CHILD = """
import json, os, sys, urllib.request
from pathlib import Path
from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.data.formats import documents
from gemmatune_trainer.data.sources import evaluation_source, open_rows
from gemmatune_trainer.errors import explain

def fail(status):
    urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_failing/{status}").close()

for case in json.load(sys.stdin):
    for name in (ENV_DATASET_TOKEN, "HF_TOKEN"):
        os.environ.pop(name, None)
    os.environ.update(case.pop("environment", {}))
    failing = case.pop("failing", None)
    if failing:
        fail(failing)
    dataset = RunDataset.model_validate(case)
    try:
        dataset = evaluation_source(dataset, Path(sys.argv[1])) or dataset
        rows = [[where, document.text] for where, document in documents(open_rows(dataset, Path(sys.argv[1])), dataset)]
        with urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/_sent") as answer:
            print(json.dumps({"rows": rows, "sent": int(answer.read())}))
    except Exception as error:
        known = explain(error)
        print(json.dumps({"reason": known and known.reason, "message": known and known.message or repr(error),
                          "remedy": known and known.remedy}))
    if failing:
        fail(200)
""".replace("ENV_DATASET_TOKEN", repr(ENV_DATASET_TOKEN))
LINES = "".join(json.dumps({"quote": f"quote {number}", "author": "A"}) + "\n" for number in range(4))
CONFIGS = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/*.csv}
  - {split: test, path: small-test.csv}
- config_name: large
  data_files: large/*.parquet
---
Text.
"""


def parquet(*quotes: str) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"quote": list(quotes)})
    pyarrow.parquet.write_table(table, sink, row_group_size=500, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.add("datasets", "Abirate/english_quotes", {"README.md": "Quotes.", "quotes.jsonl": LINES})
        running.add(
            "datasets", "Abirate/english_quotes", {"quotes.jsonl": LINES.replace("quote ", "old ")}, revision="v1"
        )
        files = {
            "README.md": CONFIGS,
            "small/b.csv": "quote\nthree\n",
            "small/a.csv": "quote\none\ntwo\n",
            "small-test.csv": "quote\nfour\n",
            "large/x.parquet": parquet("five", "six"),
        }
        running.add("datasets", "org/configs", files)
        running.add("datasets", "org/gated", {"quotes.jsonl": LINES}, access="gated")
        running.add("datasets", "org/locked", {"quotes.jsonl": LINES}, access="gated")
        running.add("datasets", "org/private", {"train.json": '[{"quote": "hidden"}]'}, access="private")
        running.add("datasets", "org/audio", {"train/a.wav": b"RIFF"})
        running.add("datasets", "org/none", {"README.md": "Nothing here."})
        large = "".join(json.dumps({"quote": f"quote {number}", "x": "x" * 1000}) + "\n" for number in range(8000))
        running.add("datasets", "org/large", {"data/train.jsonl": large}, access="gated")
        columns = parquet(*(f"quote {number} " * 40 for number in range(20_000)))
        running.add("datasets", "org/columns", {"train.parquet": columns}, access="private")
        running.add("datasets", "org/broken", {"train.jsonl": '{"quote": "a"}\n{"quote": '})
        yield running


BASE = {"split": "train", "maxLength": 64, "tooLong": "truncate", "packing": True, "text": {"template": "{quote}"}}
QUOTES = {"uri": "hf://Abirate/english_quotes"}
CONFIGS_URI = {"uri": "hf://org/configs"}
PRIVATE = {"uri": "hf://org/private"}
GATED = {"uri": "hf://org/gated", "limit": 1}
BOTH_TOKENS = {"environment": {"HF_TOKEN": STRANGER, ENV_DATASET_TOKEN: TOKEN}}
NUMBERED = [[f"quotes.jsonl line {number + 1}", f"quote {number}"] for number in range(4)]
SMALL = [["small/a.csv line 2", "one"], ["small/a.csv line 3", "two"], ["small/b.csv line 2", "three"]]
LARGE = [["large/x.parquet row 1", "five"], ["large/x.parquet row 2", "six"]]

READ: list[tuple[dict[str, Any], list[list[str]]]] = [
    (QUOTES, NUMBERED),
    (QUOTES | {"limit": 1}, NUMBERED[:1]),
    (QUOTES | {"revision": "v1", "limit": 1}, [["quotes.jsonl line 1", "old 0"]]),
    (CONFIGS_URI | {"config": "small"}, SMALL),
    (CONFIGS_URI | {"config": "small", "split": "test"}, [["small-test.csv line 2", "four"]]),
    (CONFIGS_URI | {"config": "large"}, LARGE),
    (PRIVATE | {"environment": {"HF_TOKEN": TOKEN}}, [["train.json item 1", "hidden"]]),
    (PRIVATE | BOTH_TOKENS, [["train.json item 1", "hidden"]]),
    (GATED | BOTH_TOKENS, NUMBERED[:1]),
    (
        {"uri": "hf://org/large", "limit": 2} | BOTH_TOKENS,
        [[f"data/train.jsonl line {n + 1}", f"quote {n}"] for n in (0, 1)],
    ),
    ({"uri": "hf://org/columns", "limit": 1} | BOTH_TOKENS, [["train.parquet row 1", "quote 0 " * 40]]),
    # Rows for evaluation: another split of the repository, or the one split of another.
    (CONFIGS_URI | {"config": "small", "limit": 1, "evalUri": "hf://org/configs"}, [["small-test.csv line 2", "four"]]),
    (CONFIGS_URI | {"config": "small", "evalUri": "hf://Abirate/english_quotes"}, NUMBERED),
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (CONFIGS_URI, "InvalidConfig", "pick one among the available configs: ['small', 'large']"),
    (CONFIGS_URI | {"config": "medium"}, "InvalidConfig", "'medium' not found. Available: ['small', 'large']"),
    (CONFIGS_URI | {"config": "large", "split": "dev"}, "InvalidConfig", "has no split 'dev', it has 'train'"),
    (QUOTES | {"revision": "v9"}, "InvalidConfig", "has no revision 'v9'"),
    ({"uri": "hf://org/audio"}, "DataInvalid", "train/a.wav is of a kind that is not read"),
    ({"uri": "hf://org/none"}, "DataInvalid", "holds no data file"),
    ({"uri": "hf://org/broken"}, "DataInvalid", "train.jsonl line 2 is no JSON"),
    ({"uri": "hf://org/missing"}, "AccessDenied", "does not exist, or the token may not see it"),
    (PRIVATE, "AccessDenied", "does not exist, or the token may not see it"),
    (PRIVATE | {"environment": {"HF_TOKEN": STRANGER}}, "AccessDenied", "the token may not see it"),
    (PRIVATE | {"environment": {"HF_TOKEN": "hf_old"}}, "AccessDenied", "refuses the token"),
    ({"uri": "hf://org/locked"}, "AccessDenied", "is gated, and there is no token"),
    ({"uri": "hf://org/locked", "environment": {"HF_TOKEN": STRANGER}}, "AccessDenied", "the token may not read it"),
    (
        CONFIGS_URI | {"config": "large", "evalUri": "hf://org/configs/"},
        "InvalidConfig",
        "dataset.evalUri: hf://org/configs/ has the splits 'train', none of them to evaluate on",
    ),
    (QUOTES | {"failing": 503}, "HubUnavailable", "does not answer"),
]


@pytest.fixture(scope="module")
def answers(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one fresh process makes of every dataset block of the two tables, in order."""
    folder = tmp_path_factory.mktemp("hub")
    cases = [{**BASE, **case} for case, *_ in (*READ, *REFUSED)]
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder / "cache")],
        input=json.dumps(cases),
        env={**os.environ, **hub.environment(), "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(READ)), ids=lambda number: f"{number}-{READ[number][0]['uri']}")
def test_rows_are_read(number, answers):
    assert answers[number].get("rows") == READ[number][1], answers[number]


def test_a_limit_fetches_only_the_blocks_that_hold_its_rows(answers):
    uris = [case["uri"] for case, _ in READ]
    for uri in ("hf://org/large", "hf://org/columns"):
        number = uris.index(uri)
        assert 0 < answers[number]["sent"] - answers[number - 1]["sent"] < 4 << 20, "the files have 8 and 9 MB"


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda number: f"{number}-{REFUSED[number][2]}")
def test_refusals_say_what_there_is(number, answers):
    answer = answers[len(READ) + number]
    _, reason, message = REFUSED[number]
    assert answer.get("reason") == reason, answer
    assert message in answer["message"]
    assert answer["remedy"]
    assert reason != "AccessDenied" or "secretRef" in answer["remedy"]


def test_each_token_goes_only_where_it_is_meant(hub, answers):
    public = {token for _, path, token in hub.requests if "english_quotes" in path or "configs" in path}
    assert public == {""}
    # Where the dataset has a token of its own, the model's is not sent.
    assert {token for _, path, token in hub.requests if "org/gated" in path} == {TOKEN}
