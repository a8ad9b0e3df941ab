"""Rows from files and buckets: every format, globs, and what a person is told about a damaged file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer import blocks
from gemmatune_trainer.data.sources import open_rows
from gemmatune_trainer.errors import DataInvalid, InvalidConfig, TrainerError
from gemmatune_trainer.storage_gcs import GcsStorage
from tests.support.fakegcs import FakeGcs

ROWS = [{"quote": 'Be, "yourself".', "author": "Oscar"}, {"quote": "Zwei\nZeilen ☀", "author": "二"}]


def dataset(uri: str, **values: Any) -> RunDataset:
    return RunDataset(**{"uri": uri, "split": "train", "max_length": 64, "too_long": "drop", "packing": True, **values})


def rows(uri: str, cache: Path, **values: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in open_rows(dataset(uri, **values), cache)]


def places(uri: str, cache: Path) -> list[str]:
    return [row.where for row in open_rows(dataset(uri), cache)]


def refusal(kind: type[TrainerError], uri: str, cache: Path, **values: Any) -> str:
    with pytest.raises(kind) as caught:
        rows(uri, cache, **values)
    assert caught.value.remedy
    return caught.value.message


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = 'quote,author\n"Be, ""yourself"".",Oscar\n"Zwei\nZeilen ☀",二\n'.encode()
TSV = CSV.replace(b",author", b"\tauthor").replace(b'",', b'"\t')
FILES: dict[str, bytes] = {
    "data.jsonl": JSONL,
    "blank.jsonl": b"\n" + JSONL.replace(b"\n", b"\r\n\r\n"),
    "mark.jsonl": b"\xef\xbb\xbf" + JSONL,
    "data.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "data.json": json.dumps(ROWS, indent=2).encode(),
    "mark.json": b"\xef\xbb\xbf " + json.dumps(ROWS).encode(),
    "lines.json": JSONL,
    "data.csv": CSV,
    "mark.CSV": b"\xef\xbb\xbf" + CSV.replace(b'.",Oscar\n', b'.",Oscar\r\n'),
    "data.csv.gz": gzip.compress(CSV, mtime=0),
    "data.tsv": TSV,
    "data.parquet": parquet(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    assert rows(f"file://{tmp_path}/{name}", tmp_path / "cache") == ROWS


def test_places_name_file_and_line(tmp_path):
    for name in ("data.jsonl", "data.json", "data.csv", "data.parquet"):
        (tmp_path / name).write_bytes(FILES[name])
    assert places(f"file://{tmp_path}/data.jsonl", tmp_path) == ["data.jsonl line 1", "data.jsonl line 2"]
    assert places(f"file://{tmp_path}/data.json", tmp_path) == ["data.json item 1", "data.json item 2"]
    assert places(f"file://{tmp_path}/data.csv", tmp_path) == ["data.csv line 2", "data.csv line 3"]
    assert places(f"file://{tmp_path}/data.parquet", tmp_path) == ["data.parquet row 1", "data.parquet row 2"]


TREE = {
    "a b/part-2.jsonl": '{"n": 2}',
    "a b/part-10.jsonl": '{"n": 10}',
    "a b/part-1.csv": "n\n1\n",
    "a b/notes.txt": "not data",
    "a b/.hidden.jsonl": '{"n": 99}',
    "a b/deep/er/x.jsonl": '{"n": 3}',
    "odd[1].jsonl": '{"n": 4}',
}
GLOBS = [
    ("a%20b/part-2.jsonl", [2]),
    ("a%20b/*.jsonl", [10, 2]),
    ("a%20b/part-?.jsonl", [2]),
    ("a%20b/part-[!1]*", [2]),
    ("*/part-[0-9].jsonl", [2]),
    ("a%20b/**/*.jsonl", [3, 10, 2]),
    ("a%20b", ["1", 10, 2]),
    ("a%20b/", ["1", 10, 2]),
]


@pytest.mark.parametrize(("pattern", "expected"), GLOBS)
def test_globs_and_folders_of_files(pattern, expected, tmp_path):
    for name, text in TREE.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert [row["n"] for row in rows(f"file://{tmp_path}/tree/{pattern}", tmp_path / "cache")] == expected
    assert rows(f"file://{tmp_path}/tree/odd[1].jsonl", tmp_path) == [{"n": 4}]


@pytest.fixture(scope="module")
def filled(fake_gcs: FakeGcs) -> str:
    bucket = fake_gcs.new_bucket()
    client = fake_gcs.client().bucket(bucket)
    for name, text in TREE.items():
        client.blob(f"data/{name}").upload_from_string(text)
    for name, data in FILES.items():
        client.blob(f"formats/{name}").upload_from_string(data)
    return bucket


@pytest.mark.parametrize(("pattern", "expected"), GLOBS)
def test_globs_and_folders_of_a_bucket(pattern, expected, filled, fake_gcs, tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    uri = f"gs://{filled}/data/{pattern}".replace("%20", " ")
    assert [row["n"] for row in rows(uri, tmp_path)] == expected
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.json", "data.csv", "data.parquet"])
def test_formats_of_a_bucket(name, filled, fake_gcs, tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    assert rows(f"gs://{filled}/formats/{name}", tmp_path) == ROWS


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.json", "data.csv", "data.parquet"])
def test_a_limit_reads_an_object_in_blocks(name, filled, fake_gcs, tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    assert rows(f"gs://{filled}/formats/{name}", tmp_path, limit=1) == ROWS


def test_blocks_are_fetched_when_they_are_read(filled, fake_gcs, tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 14)
    lines = "".join(json.dumps({"n": number, "x": "x" * 1000}) + "\n" for number in range(200))
    bucket = fake_gcs.client().bucket(filled)
    bucket.blob("blocks/long.jsonl").upload_from_string(lines)
    asked = []
    whole = GcsStorage.read_part

    def counted(self, item, begin, end):
        asked.append((begin, end))
        return whole(self, item, begin, end)

    monkeypatch.setattr(GcsStorage, "read_part", counted)
    reader = open_rows(dataset(f"gs://{filled}/blocks/long.jsonl", limit=150), tmp_path)
    assert [next(reader).values["n"] for _ in range(20)] == list(range(20))
    assert asked == [(begin, begin + (1 << 14)) for begin in range(0, 2 << 14, 1 << 14)]
    bucket.blob("blocks/long.jsonl").upload_from_string(lines)
    with pytest.raises(InvalidConfig, match="was deleted or changed while it was read"):
        list(reader)


def test_what_a_bucket_does_not_hold_is_refused(filled, fake_gcs, tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    assert "names no file" in refusal(InvalidConfig, f"gs://{filled}/data/none.jsonl", tmp_path)
    assert "names no file" in refusal(InvalidConfig, f"gs://{filled}/data/*.parquet", tmp_path)
    assert "does not exist" in refusal(InvalidConfig, "gs://no-such-bucket/x.jsonl", tmp_path)
    assert "names no bucket" in refusal(InvalidConfig, "gs:///x.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n \n", "holds no row"),
        ("a.json", b"[]", "holds no row"),
        ("a.csv", b"quote,author\n", "holds no row"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl line 2 is no JSON: Expecting value at character 6, found text"),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', "a.jsonl line 2: expected an object, found list [1, 2]"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl line 2 is no UTF-8"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1"),
        ("a.json", b'[{"a": 1},\n {"a": }]', "a.json is no JSON: Expecting value in line 2, character 8"),
        ("a.json", b'[{"a": 1}, 7]', "a.json item 2: expected an object, found number 7"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv line 3: expected 2 cells as in the header, found 3"),
        ("a.csv", b"a,a\n1,2\n", "the header names the column 'a' twice"),
        ("a.csv", b'a,b\n1,2\n"1,2\n', "a.csv line 3 is no CSV"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv is no UTF-8"),
        ("a.parquet", b"PAR1 nothing", "is no Parquet file that can be read"),
        ("a.jsonl.gz", b"no gzip", "is no whole gzip file"),
        ("a.jsonl.gz", gzip.compress(JSONL, mtime=0)[:-9], "is no whole gzip file"),
        ("a.txt", b"text", "no format is known by this ending"),
        ("a.parquet.gz", b"text", "no format is known by this ending"),
    ],
)
def test_damaged_files_are_refused(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert message in refusal(DataInvalid, f"file://{tmp_path}/{name}", tmp_path)


def test_what_files_do_not_have_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}')
    uri = f"file://{tmp_path}/a.jsonl"
    assert "have the split train only, found 'test'" in refusal(InvalidConfig, uri, tmp_path, split="test")
    assert "dataset.config: only repositories" in refusal(InvalidConfig, uri, tmp_path, config="small")
    assert "dataset.revision: only repositories" in refusal(InvalidConfig, uri, tmp_path, revision="v1")
    assert "does not exist" in refusal(InvalidConfig, f"file://{tmp_path}/b.jsonl", tmp_path)
    assert "names no file" in refusal(InvalidConfig, f"file://{tmp_path}/*.csv", tmp_path)
    assert "takes in a.txt" in refusal(DataInvalid, glob_with_text(tmp_path), tmp_path)
    assert "no absolute path" in refusal(InvalidConfig, "file://a.jsonl", tmp_path)
    assert "cannot be read" in refusal(InvalidConfig, "kaggle://org/name/x", tmp_path)


def glob_with_text(folder: Path) -> str:
    (folder / "a.txt").write_text("text")
    return f"file://{folder}/a.*"


def test_later_files_are_opened_only_when_their_rows_are_asked_for(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    (tmp_path / "2.jsonl").write_text("damaged")
    reader = open_rows(dataset(f"file://{tmp_path}/*.jsonl"), tmp_path)
    assert [next(reader).values["n"], next(reader).values["n"]] == [1, 2]
    with pytest.raises(DataInvalid, match=r"2\.jsonl line 1"):
        next(reader)
