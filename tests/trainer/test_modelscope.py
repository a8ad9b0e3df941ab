"""Data and weights from ModelScope: splits, what is fetched, and what a person is told, against a hub on loopback."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from gemmatune_api.names import ENV_CACHE, ENV_DATASET_TOKEN
from gemmatune_api.runconfig import RunDataset, RunModel
from gemmatune_trainer import modelscope
from gemmatune_trainer.data.formats import documents
from gemmatune_trainer.data.sources import evaluation_source, open_rows
from gemmatune_trainer.errors import AccessDenied, DataInvalid, HubUnavailable, InvalidConfig, TrainerError
from gemmatune_trainer.models import fetch
from gemmatune_trainer.modelscope import ENDPOINT_VARIABLE, TOKEN_VARIABLE
from tests.support.modelscope import STRANGER, TOKEN, ModelScope
from tests.support.standin import write_small_model

LINES = "".join(json.dumps({"quote": f"quote {number}"}) + "\n" for number in range(4))
MANY = "".join(json.dumps({"quote": f"quote {number}", "long": "x" * 1000}) + "\n" for number in range(8000))
CARD = """---
license: apache-2.0
configs:
- config_name: small
  data_files:
  - {split: train, path: "small/*.csv"}
  - {split: test, path: [small-test.csv]}
- config_name: large
  data_files: {train: "large/**"}
---
Text.
"""


def parquet(rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table(
        {"quote": [f"quote {row}" for row in range(rows)], "long": [f"{row} " * 50 for row in range(rows)]}
    )
    pyarrow.parquet.write_table(table, sink, row_group_size=500, compression="none")
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def filled() -> Iterator[ModelScope]:
    with ModelScope() as running:
        running.add(
            "datasets", "team/quotes", {"README.md": "Quotes.", "quotes.jsonl": LINES, "configuration.json": "{}"}
        )
        running.add("datasets", "team/quotes", {"quotes.jsonl": LINES.replace("quote ", "old ")}, revision="v1")
        words = {"data/train-0.jsonl": LINES, "data/train-1.jsonl.gz": gzip.compress(LINES.encode()), "dev.json": LINES}
        running.add("datasets", "team/words", words)
        files = {
            "README.md": CARD,
            "small/b.csv": "quote\nthree\n",
            "small/a.csv": "quote\none\n",
            "small-test.csv": "quote\nfour\n",
            "large/x/y.jsonl": LINES,
        }
        running.add("datasets", "team/configs", files)
        running.add("datasets", "team/pages", {f"part-{number}.jsonl": '{"quote": "a"}' for number in range(5)})
        running.add("datasets", "team/many", {"many.jsonl": MANY})
        running.add("datasets", "team/columns", {"many.parquet": parquet(20_000)})
        running.add("datasets", "team/gated", {"quotes.jsonl": LINES}, access="gated")
        running.add("datasets", "team/private", {"quotes.jsonl": LINES}, access="private")
        running.add("datasets", "team/audio", {"a.wav": b"RIFF"})
        yield running


@pytest.fixture
def hub(filled: ModelScope, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelScope]:
    monkeypatch.setenv(ENDPOINT_VARIABLE, filled.endpoint + "/")
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    for name in (TOKEN_VARIABLE, ENV_DATASET_TOKEN):
        monkeypatch.delenv(name, raising=False)
    filled.requests.clear()
    yield filled
    filled.failing, filled.breaks, filled.ignores_ranges, filled.sent = None, 0, False, 0


def dataset(name: str, **values: Any) -> RunDataset:
    base = {"uri": f"ms://team/{name}", "split": "train", "maxLength": 64, "tooLong": "drop", "packing": True}
    return RunDataset.model_validate({**base, "text": {"template": "{quote}"}, **values})


def texts(block: RunDataset, cache: Path) -> list[str]:
    return [document.text for _, document in documents(open_rows(block, cache), block)]


def refusal(kind: type[TrainerError], cache: Path, name: str, **values: Any) -> TrainerError:
    with pytest.raises(kind) as caught:
        texts(dataset(name, **values), cache)
    assert caught.value.remedy
    return caught.value


FOUR = [f"quote {number}" for number in range(4)]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("quotes", {}, FOUR),
        ("quotes", {"limit": 2}, FOUR[:2]),
        ("quotes", {"revision": "v1", "limit": 1}, ["old 0"]),
        ("words", {}, FOUR * 2),
        ("words", {"limit": 5}, [*FOUR, FOUR[0]]),
        ("words", {"split": "validation"}, FOUR),
        ("configs", {"config": "small"}, ["one", "three"]),
        ("configs", {"config": "small", "split": "test"}, ["four"]),
        ("configs", {"config": "large"}, FOUR),
    ],
)
def test_rows_are_read(name, values, expected, hub, tmp_path):
    assert texts(dataset(name, **values), tmp_path) == expected


def test_long_listings_come_in_pages(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(modelscope, "PAGE_FILES", 2)
    assert texts(dataset("pages"), tmp_path) == ["a"] * 5
    assert [request.query["PageNumber"] for request in hub.requests if request.path.endswith("/tree")] == [
        "1",
        "2",
        "3",
    ]


def test_places_name_file_and_line(hub, tmp_path):
    block = dataset("words", limit=1)
    assert [where for where, _ in documents(open_rows(block, tmp_path), block)] == ["data/train-0.jsonl line 1"]


def test_rows_for_evaluation_are_another_split(hub, tmp_path):
    found = evaluation_source(dataset("configs", config="small", evalUri="ms://team/configs"), tmp_path)
    assert found is not None
    assert texts(found, tmp_path) == ["four"]
    other = evaluation_source(dataset("quotes", evalUri="ms://team/words"), tmp_path)
    assert other is not None
    assert other.split == "validation"
    with pytest.raises(InvalidConfig, match="none of them to evaluate on"):
        evaluation_source(dataset("quotes", evalUri="ms://team/quotes"), tmp_path)


@pytest.mark.parametrize(("name", "whole"), [("many", len(MANY)), ("columns", len(parquet(20_000)))])
def test_a_limit_fetches_only_the_blocks_that_hold_its_rows(name, whole, hub, tmp_path):
    assert texts(dataset(name, limit=3), tmp_path) == FOUR[:3]
    assert 0 < hub.sent < whole / 2
    hub.sent = 0
    hub.ignores_ranges = True
    assert texts(dataset(name, limit=3), tmp_path) == FOUR[:3]


def test_a_broken_download_goes_on_where_it_broke(hub, tmp_path):
    hub.breaks = 3
    assert len(texts(dataset("many"), tmp_path)) == 8000
    ranges = [request.range for request in hub.requests if request.path.startswith("/_store")]
    assert len(ranges) == 4
    assert ranges[0] == "0-"
    assert len(set(ranges)) == 4
    hub.breaks, hub.ignores_ranges = 1, True
    assert len(texts(dataset("many"), tmp_path)) == 8000
    hub.breaks, hub.ignores_ranges = 2, False
    assert texts(dataset("many", limit=3), tmp_path) == FOUR[:3]


@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        (InvalidConfig, "configs", {}, "needs one of 'small', 'large'"),
        (InvalidConfig, "configs", {"config": "medium"}, "has no 'medium', it has 'small', 'large'"),
        (InvalidConfig, "configs", {"config": "large", "split": "dev"}, "has no split 'dev', it has 'train'"),
        (InvalidConfig, "quotes", {"config": "small"}, "has no configurations, found 'small'"),
        (InvalidConfig, "quotes", {"revision": "v9"}, "has no revision 'v9', it has master, v1"),
        (DataInvalid, "audio", {}, "holds no data file"),
        (AccessDenied, "missing", {}, "does not exist, or needs a token (数据集不存在)"),
        (AccessDenied, "private", {}, "does not exist, or needs a token"),
        (AccessDenied, "gated", {}, "unauthorized permission"),
    ],
)
def test_refusals_say_what_there_is(kind, name, values, message, hub, tmp_path):
    error = refusal(kind, tmp_path, name, **values)
    assert message in error.message
    assert kind is not AccessDenied or "dataset.secretRef" in error.remedy


def test_a_hub_out_of_order_is_told_from_a_refusal(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(modelscope, "RETRIES", 1)
    hub.failing = HTTPStatus.SERVICE_UNAVAILABLE
    assert "HTTP 503 the hub is out of order" in refusal(HubUnavailable, tmp_path, "quotes").message
    assert len(hub.requests) == 2, "asked again once"
    monkeypatch.setenv(ENDPOINT_VARIABLE, "http://127.0.0.1:9")
    assert "ConnectionError" in refusal(HubUnavailable, tmp_path, "quotes").message


@pytest.mark.parametrize(
    ("variables", "name", "may"),
    [
        ({TOKEN_VARIABLE: TOKEN}, "private", True),
        ({TOKEN_VARIABLE: TOKEN}, "gated", True),
        ({TOKEN_VARIABLE: STRANGER}, "private", False),
        ({TOKEN_VARIABLE: STRANGER, ENV_DATASET_TOKEN: TOKEN}, "private", True),
        ({TOKEN_VARIABLE: "ms-old"}, "private", False),
    ],
)
def test_tokens(variables, name, may, hub, tmp_path, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    if may:
        assert texts(dataset(name), tmp_path) == FOUR
    else:
        assert "the token may not read it" in refusal(AccessDenied, tmp_path, name).message
    stored = [request for request in hub.requests if request.path.startswith("/api")]
    assert {request.cookie for request in stored} == {variables.get(ENV_DATASET_TOKEN, variables[TOKEN_VARIABLE])}


def test_a_token_for_another_hub_is_not_sent(hub, tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_DATASET_TOKEN, "hf_secret")
    trained = dataset("quotes", uri="hf://org/rows", evalUri="ms://team/words")
    found = evaluation_source(trained, tmp_path)
    assert found is not None
    assert len(list(open_rows(found, tmp_path, trained.uri))) == 4
    assert {(request.cookie, request.bearer) for request in hub.requests} == {("", "")}


# weights


def test_a_model_is_fetched_once_and_pinned_to_its_files(hub, tmp_path, monkeypatch):
    source = tmp_path / "gemma"
    write_small_model(source, "3")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    hub.add("models", "team/gemma", {**files, "original/weights.bin": b"x", "model.bin": b"pickle"}, access="private")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    model = RunModel(uri="ms://team/gemma")
    small = fetch(model, weights=False)
    assert sorted(path.name for path in small.folder.iterdir()) == sorted(files.keys() - {"model.safetensors"})
    assert small.model.family == "gemma3_text"
    whole = fetch(model, weights=True, revision=small.revision)
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == files
    hub.sent = 0
    assert fetch(model, weights=True, revision=small.revision).folder == whole.folder
    assert hub.sent == 0
    hub.add("models", "team/gemma", {**files, "model.safetensors": bytes(17)})
    with pytest.raises(InvalidConfig, match="changed since the run was prepared"):
        fetch(model, weights=True, revision=small.revision)
    monkeypatch.setenv(TOKEN_VARIABLE, STRANGER)
    with pytest.raises(AccessDenied, match=r"model\.uri: ms://team/gemma does not exist") as caught:
        fetch(model, weights=False)
    assert "model.secretRef" in caught.value.remedy


def test_a_damaged_download_is_no_model(hub, tmp_path):
    source = tmp_path / "gemma"
    write_small_model(source, "3")
    hub.add("models", "team/damaged", {path.name: path.read_bytes() for path in source.iterdir()})
    repository = modelscope.Repository("models", "ms://team/damaged", None, None)
    listed = next(file for file in repository.files() if file.path == "config.json")
    wrong = modelscope.HubFile(listed.path, listed.size, "0" * 64)
    with pytest.raises(HubUnavailable, match=r"config\.json arrived damaged"):
        repository.download([wrong], tmp_path / "x")
