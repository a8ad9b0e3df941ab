"""Prepared rows: what is counted, what the hash covers, and that a damaged folder is never used."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import catalog
from gemmatune_api.names import ENV_GCS_ENDPOINT
from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.data import prepared, spool
from gemmatune_trainer.data.formats import Conversation, Document, Text, Turn
from gemmatune_trainer.data.mapped import PreparedData
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.data.templates import render
from gemmatune_trainer.data.tokenize import RowTokenizer
from gemmatune_trainer.errors import DataInvalid
from gemmatune_trainer.prepare import summary
from gemmatune_trainer.storage import open_storage
from tests.support.standin import standin_tokenizer

RULES = catalog.rules("2")


@pytest.fixture(scope="module")
def tokenizer() -> RowTokenizer:
    return RowTokenizer(standin_tokenizer("2"), RULES, "stand-in")


def dataset(**values: Any) -> RunDataset:
    base = {"uri": "file:///x.jsonl", "split": "train", "max_length": 64, "too_long": "truncate", "packing": True}
    return RunDataset(**{**base, **values})


def talk(question: str, answer: str) -> Conversation:
    return Conversation("", (Turn("user", question), Turn("assistant", answer, trained=True)))


def spooled(folder: Path, *documents: Document) -> spool.Spool:
    return spool.write(((f"row {number}", document) for number, document in enumerate(documents)), folder / "d.jsonl")


DOCUMENTS = (talk("Hi", "Hello"), Text("Be ☀\u2028\n you"), talk("Hi", "Hello"), talk("What is the sky?", "Blue"))


def test_documents_survive_the_spool(tmp_path):
    kept = spooled(tmp_path, *DOCUMENTS)
    assert [document for _, document in kept] == list(DOCUMENTS)
    assert [where for where, _ in kept] == [f"row {number}" for number in range(4)]
    assert (kept.rows, kept.duplicates) == (4, 1)


def test_half_a_character_is_refused(tmp_path):
    with pytest.raises(DataInvalid, match="row 1: the text holds half of a character"):
        spooled(tmp_path, Text("whole"), Text("a\ud83db"))


def test_statistics_and_rows(tmp_path, tokenizer):
    kept = spooled(tmp_path, *DOCUMENTS)
    status = prepared.write(kept, dataset(), tokenizer, tmp_path / "rows")
    expected = [tokenizer.encode(render(document, RULES)) for document in DOCUMENTS]
    data = PreparedData(tmp_path / "rows" / prepared.ROWS, status)
    assert data.rows == 4
    assert [data.row(index) for index in range(4)] == [(row.input_ids, row.labels) for row in expected]
    assert data.lengths().tolist() == [len(row.input_ids) for row in expected]
    assert status.tokens == sum(len(row.input_ids) for row in expected)
    assert status.labelled_tokens == sum(label != IGNORED for row in expected for label in row.labels)
    assert (status.rows, status.duplicates, status.longest) == (4, 1, max(len(row.input_ids) for row in expected))
    assert (status.truncated_rows, status.cut_tokens, status.dropped_rows) == (0, 0, 0)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            data.row(index)


def test_what_is_cut_or_dropped_is_counted(tmp_path, tokenizer):
    # 11, 17 and 24 tokens: the first fits, the second is cut, the third keeps nothing of its answer.
    rows = (talk("Hi", "Hello"), talk("Hi", "Hello you and you and you and"), talk("is " * 20, "Blue"))
    lengths = [len(tokenizer.encode(render(row, RULES)).input_ids) for row in rows]
    limit = lengths[0] + 1
    kept = spooled(tmp_path, *rows)
    status = prepared.write(kept, dataset(max_length=limit), tokenizer, tmp_path / "cut")
    assert (status.rows, status.truncated_rows, status.dropped_rows) == (2, 1, 1)
    assert status.cut_tokens == lengths[1] - limit
    assert status.longest == max(lengths)
    dropping = prepared.write(kept, dataset(max_length=limit, too_long="drop"), tokenizer, tmp_path / "dropped")
    assert (dropping.rows, dropping.truncated_rows, dropping.cut_tokens, dropping.dropped_rows) == (1, 0, 0, 2)
    message = f"row 1 has {lengths[1]} tokens, dataset.maxLength is {limit}"
    with pytest.raises(DataInvalid, match=message):
        prepared.write(kept, dataset(max_length=limit, too_long="fail"), tokenizer, tmp_path / "failed")
    with pytest.raises(DataInvalid, match="no row is left to train on: all 3 rows are longer"):
        prepared.write(kept, dataset(max_length=5), tokenizer, tmp_path / "none")


def test_what_is_cut_or_dropped_of_rows_for_evaluation_is_counted(tmp_path, tokenizer):
    (tmp_path / "held").mkdir()
    short, long, silent = talk("Hi", "Hello"), talk("Hi", "Hello you and you and you and"), talk("is " * 20, "Blue")
    kept, held = spooled(tmp_path, short), spooled(tmp_path / "held", short, long, long, silent)
    length, cut = (len(tokenizer.encode(render(row, RULES)).input_ids) for row in (short, long))

    def counted(too_long: str) -> tuple[int | None, ...]:
        limited = dataset(max_length=length, too_long=too_long)
        status = prepared.write(kept, limited, tokenizer, tmp_path / too_long, evaluation=held)
        assert (status.rows, status.truncated_rows, status.cut_tokens, status.dropped_rows) == (1, 0, 0, 0)
        told.append(summary(status))
        return status.eval_rows, status.eval_truncated_rows, status.eval_cut_tokens, status.eval_dropped_rows

    told: list[str] = []
    assert counted("truncate") == (3, 2, 2 * (cut - length), 1)
    assert counted("drop") == (1, 0, 0, 3)
    assert f"3 rows are kept for evaluation; 2 of these were cut ({2 * (cut - length)} tokens lost)" in told[0]
    assert "1 rows for evaluation were dropped as too long" in told[0]
    assert "3 rows for evaluation were dropped as too long" in told[1]
    plain = prepared.write(kept, dataset(), tokenizer, tmp_path / "plain")
    assert (plain.eval_rows, plain.eval_truncated_rows, plain.eval_dropped_rows) == (None, None, None)


@pytest.mark.parametrize(("name", "bound"), [("BATCH_ROWS", 7), ("BATCH_LENGTH", 20), ("BATCH_LENGTH", 1)])
def test_more_rows_than_a_batch(tmp_path, tokenizer, monkeypatch, name, bound):
    monkeypatch.setattr(prepared, name, bound)
    documents = [Text("Hello " * (number % 5 + 1)) for number in range(50)]
    kept = spooled(tmp_path, *documents)
    data = PreparedData(
        tmp_path / "rows" / prepared.ROWS, prepared.write(kept, dataset(), tokenizer, tmp_path / "rows")
    )
    assert data.rows == 50
    expected = [tokenizer.encode(render(document, RULES)).input_ids for document in documents]
    assert [data.row(index)[0] for index in range(50)] == expected


def test_long_documents_are_not_in_memory_together(tmp_path, tokenizer):
    def peak(documents: int) -> int:
        kept = spooled(tmp_path, *(Text("Hello " * 5_000 + str(number)) for number in range(documents)))
        tracemalloc.start()
        prepared.write(kept, dataset(), tokenizer, tmp_path / "rows")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "BATCH_LENGTH", 1 << 16)
        # How many batches are under way at once depends on the threads; all of them would be six times as much.
        assert peak(48) < 2 * peak(8)


def test_the_hash_covers_what_decides_the_tokens(tmp_path, tokenizer):
    kept = spooled(tmp_path, *DOCUMENTS)
    same = prepared.data_hash(spooled(tmp_path / "again", *DOCUMENTS), dataset(limit=9, packing=False), tokenizer)
    assert prepared.data_hash(kept, dataset(), tokenizer) == same
    other_tokenizer = RowTokenizer(standin_tokenizer("2"), RULES, "another")
    third_generation = RowTokenizer(standin_tokenizer("3"), catalog.rules("3"), "stand-in")
    different = {
        prepared.data_hash(spooled(tmp_path / "more", *DOCUMENTS, Text("x")), dataset(), tokenizer),
        prepared.data_hash(spooled(tmp_path / "order", *DOCUMENTS[::-1]), dataset(), tokenizer),
        prepared.data_hash(kept, dataset(max_length=32), tokenizer),
        prepared.data_hash(kept, dataset(too_long="drop"), tokenizer),
        prepared.data_hash(kept, dataset(), other_tokenizer),
    }
    assert len(different - {same}) == 5
    # Generations 2 and 3 write turns alike: their tokenizers make the difference.
    assert prepared.data_hash(kept, dataset(), third_generation) == same


def test_labels_are_part_of_the_hash(tmp_path, tokenizer):
    masked = Conversation("", (Turn("user", "Hi"), Turn("assistant", "Hello")))
    hashes = {prepared.data_hash(spooled(tmp_path, row), dataset(), tokenizer) for row in (talk("Hi", "Hello"), masked)}
    assert len(hashes) == 2


@pytest.fixture(params=["file", "gs"])
def output(request, tmp_path, monkeypatch) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/out"
    server = request.getfixturevalue("fake_gcs")
    monkeypatch.setenv(ENV_GCS_ENDPOINT, server.endpoint)
    return f"gs://{request.getfixturevalue('bucket')}/run"


def published(output: str, folder: Path, tokenizer: RowTokenizer) -> tuple[str, Any]:
    status = prepared.write(spooled(folder, *DOCUMENTS), dataset(), tokenizer, folder / "rows")
    storage = open_storage(output)
    prepared.publish(storage, status.hash, folder / "rows")
    return status.hash, status


def test_published_rows_are_found_and_loaded(output, tmp_path, tokenizer):
    name, status = published(output, tmp_path, tokenizer)
    storage = open_storage(output)
    assert {item.name for item in storage.list("prepared/")} == {
        f"prepared/{name}/{file}" for file in (prepared.ROWS, prepared.STATISTICS, prepared.MANIFEST)
    }
    assert prepared.find(storage, name) == status
    assert prepared.find(storage, "0" * 16) is None
    first = prepared.load(storage, output, name, tmp_path / "cache")
    assert (first.rows, first.statistics) == (4, status)
    # A second trainer on this machine reads the same file, which is not downloaded again.
    before = (tmp_path / "cache" / name / prepared.ROWS).stat().st_mtime_ns
    assert prepared.load(storage, output, name, tmp_path / "cache").row(3) == first.row(3)
    assert (tmp_path / "cache" / name / prepared.ROWS).stat().st_mtime_ns == before


def damage_rows(folder: Path) -> None:
    data = bytearray((folder / prepared.ROWS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / prepared.ROWS).write_bytes(bytes(data))


def change_manifest(folder: Path) -> None:
    manifest = json.loads((folder / prepared.MANIFEST).read_text())
    (folder / prepared.MANIFEST).write_text(json.dumps({**manifest, "dataHash": "other"}))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (damage_rows, True),  # sizes fit: only the download's checksum tells
        (lambda folder: (folder / prepared.ROWS).write_bytes(b"short"), False),
        (lambda folder: (folder / prepared.STATISTICS).unlink(), False),
        (lambda folder: (folder / prepared.MANIFEST).unlink(), False),
        (lambda folder: (folder / prepared.MANIFEST).write_text("{"), False),
        (change_manifest, False),
    ],
)
def test_damaged_rows_are_not_loaded(damage: Callable[[Path], None], found, tmp_path, tokenizer):
    output = f"file://{tmp_path}/out"
    name, _ = published(output, tmp_path, tokenizer)
    damage(tmp_path / "out" / "prepared" / name)
    storage = open_storage(output)
    assert (prepared.find(storage, name) is not None) == found
    with pytest.raises(DataInvalid, match=f"prepared/{name}") as caught:
        prepared.load(storage, output, name, tmp_path / "cache")
    assert "Delete" in caught.value.remedy
    # What `find` does not trust is made anew, and then whole.
    published(output, tmp_path, tokenizer)
    assert prepared.load(storage, output, name, tmp_path / "cache").rows == 4
