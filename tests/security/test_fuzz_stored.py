"""Any JSON in a bucket, a model or a hub's answer: it is read, passed over or refused, and ends no process."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import catalog
from gemmatune_api.status import CheckpointStatus, DataStatus
from gemmatune_trainer import checkpoints, manifest, merged, modelcache, samples
from gemmatune_trainer.backends import forms
from gemmatune_trainer.checkpoints import Checkpoints
from gemmatune_trainer.data import prepared
from gemmatune_trainer.data.mapped import SCHEMA
from gemmatune_trainer.errors import DataInvalid, Interrupted, InvalidConfig, OutputInUse, TrainerError, explain
from gemmatune_trainer.evaluation import Evaluation
from gemmatune_trainer.generation import _published
from gemmatune_trainer.history import History
from gemmatune_trainer.kaggle import Variation
from gemmatune_trainer.merged import Inputs, Scores
from gemmatune_trainer.modelcache import Copy, Unusable
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.modelscope import Repository
from gemmatune_trainer.ownership import Claim, Fence
from gemmatune_trainer.storage import Storage, crc32c, open_storage
from tests.security.mutations import anything, places
from tests.security.test_fuzz import fuzzed, told

DEEP, INFINITE = b"[" * 200_000, b'{"size": Infinity}'
EXHAUSTING = (DEEP, b'{"a":' * 20_000, b"[" * 900 + b"]" * 900, b"9" * 6_000, INFINITE, b"\xef\xbb\xbf{}", b'"\\ud800"')
CLAIM = Claim("uid-1", "team", "quotes", "r" * 16, "d" * 16, "main")
INPUTS = Inputs("r" * 16, "hf://google/gemma-3-270m", "main", "f" * 64)
SCORES = Scores(4, True, 100, 2.5, 2.0, 2.0, 0.001, 0.1)
STATUS = DataStatus(hash="d" * 16, rows=4, tokens=40)


@st.composite
def stored(draw: st.DrawFn, sound: Any) -> bytes:
    """What lies in a document's place: one in which up to two values are others, any JSON, or any bytes."""
    kind = draw(st.sampled_from(("near", "near", "near", "json", "bytes", "exhausting")))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "exhausting":
        return draw(st.sampled_from(EXHAUSTING))
    document = draw(anything) if kind == "json" else copy.deepcopy(sound)
    for _ in range(draw(st.integers(0, 2)) if kind == "near" else 0):
        *way, last = draw(st.sampled_from(places(document)[1:] or [("at",)]))
        block = document
        for part in way:
            block = block[part]
        if isinstance(block, dict) and draw(st.booleans()):
            block.pop(last, None)
        elif isinstance(block, dict | list):
            block[last] = draw(anything)
    return json.dumps(document).replace('"1e400"', "1e400").encode()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage((tmp_path / "out").as_uri())


def file(name: str) -> dict[str, Any]:
    return {"name": name, "size": 1, "crc32c": "x", "sha256": "f" * 64}


def reader(storage: Storage) -> Checkpoints:
    identity = {"resumeHash": "r" * 16, "dataHash": "d" * 16}
    return Checkpoints(storage, Fence(storage, CLAIM, 1), Path(), identity, 2, lambda step, uri: None)


SAVED = {"version": 1, "step": 100, "resumeHash": "r" * 16, "dataHash": "d" * 16, "files": [file("a"), file("b")]}


def test_any_manifest_of_a_checkpoint_is_passed_over_in_words(storage: Storage, tmp_path: Path) -> None:
    prefix = checkpoints.prefix_of(100)
    for name in "ab":
        storage.write(f"{prefix}/{name}", b"x")
        SAVED["files"]["ab".index(name)]["crc32c"] = crc32c(tmp_path / f"out/{prefix}/{name}")
    sizes = {item.name: item.size for item in storage.list()}
    sound = []

    @fuzzed
    @given(stored(SAVED))
    def passed_over(content: bytes) -> None:
        storage.write(f"{prefix}/{checkpoints.MANIFEST}", content)
        fault = reader(storage)._fetch(100, sizes, tmp_path / "restored")
        sound.append(not fault)
        assert len(fault) < 300, "it becomes a part of the status"
        assert {path.name for path in (tmp_path / "restored").glob("*")} <= {"a", "b"}

    passed_over()
    assert True in sound, "or what comes after the manifest is never reached"


def test_thousands_of_manifests_make_no_long_status(storage: Storage) -> None:
    """A status that is too large would not be written, and a run without heartbeats counts as stalled."""
    for step in range(1, 40):
        storage.write(f"{checkpoints.prefix_of(step)}/{checkpoints.MANIFEST}", DEEP)
    heir = reader(storage)
    assert heir.newest() is None
    note = CheckpointStatus(step=0, uri="", note=heir.note).note or ""
    assert note.startswith("The checkpoint of step 39 is not used: its manifest cannot be read: ")
    assert note.endswith("Nor are 34 older ones.")
    assert len(note) < 1500


RESULT = {
    "resumeHash": "r" * 16, "steps": 100, "model": {"uri": "hf://x"}, "artifacts": {"manifest": "gs://b/manifest.json"},
    "adapter": [file("adapter/adapter_model.safetensors")],
}  # fmt: skip


@fuzzed
@given(content=stored(RESULT))
def test_any_manifest_of_a_result_is_read_or_none(storage: Storage, content: bytes) -> None:
    storage.write(manifest.NAME, content)
    found = manifest.find(storage, "r" * 16)
    assert found is None or (type(found.steps), type(found.files)) == (int, tuple)


MERGED = {"inputs": asdict(INPUTS), "files": [file("x")], "verified": asdict(SCORES)}


@fuzzed
@given(content=stored(MERGED))
def test_any_manifest_of_a_merge_is_read_or_none(storage: Storage, content: bytes) -> None:
    storage.write("merged/x", b"x")
    storage.write(merged.NAME, content)
    found = merged.find(storage, INPUTS)
    assert found is None or found.text
    assert merged._is_there(storage, MERGED) in (True, False)


@fuzzed
@given(stored(json.loads(CLAIM.to_bytes())))
def test_any_record_of_a_run_is_read_or_in_use(content: bytes) -> None:
    try:
        found = Claim.from_bytes(content, "gs://b/run.json")
    except OutputInUse as error:
        told(error.message)
        return
    assert all(isinstance(value, str) for value in asdict(found).values())


numbers = st.sampled_from(["00002", "merge-00001", "\u00b2", "\u0662", "7" * 200, "-1", "x"])


@fuzzed
@given(content=stored({"uid": "uid-1", "attempt": 2}), name=numbers)
def test_any_record_of_an_attempt_is_newer_or_passed_over(storage: Storage, content: bytes, name: str) -> None:
    storage.write("run.json", CLAIM.to_bytes())
    storage.delete([item.name for item in storage.list("attempts/")])
    storage.write(f"attempts/{name}", content)
    try:
        Fence(storage, CLAIM, 1).check()
    except Interrupted as error:
        told(error.message)


PREPARED = {"version": 1, "dataHash": "d" * 16, "files": [file(prepared.ROWS), file(prepared.STATISTICS)]}


@pytest.fixture
def rows(storage: Storage, tmp_path: Path) -> dict[str, Any]:
    """A manifest of rows that are there."""
    folder = tmp_path / "out" / prepared.prefix_of("d" * 16)
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / prepared.ROWS), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(pa.record_batch([[[1, 2]], [[True, False]]], schema=SCHEMA))
    (folder / prepared.STATISTICS).write_text(STATUS.model_dump_json(by_alias=True))
    files = [
        {"name": path.name, "size": path.stat().st_size, "crc32c": crc32c(path)} for path in sorted(folder.iterdir())
    ]
    return {**PREPARED, "files": files}


def test_any_manifest_of_rows_is_read_or_refused(storage: Storage, rows: dict[str, Any], tmp_path: Path) -> None:
    name, loaded = "d" * 16, []

    @fuzzed
    @given(stored(rows))
    def read_or_refused(content: bytes) -> None:
        storage.write(f"{prepared.prefix_of(name)}/{prepared.MANIFEST}", content)
        assert prepared.find(storage, name) in (None, STATUS)
        try:
            loaded.append(prepared.load(storage, storage.uri, name, tmp_path / "cache").rows)
        except DataInvalid as error:
            told(error.message)

    read_or_refused()
    assert set(loaded) == {1}


@pytest.mark.parametrize("damaged", [prepared.ROWS, prepared.STATISTICS])
def test_rows_that_a_manifest_wrongly_vouches_for_are_refused(
    storage: Storage, rows: dict[str, Any], damaged: str, tmp_path: Path
) -> None:
    path = tmp_path / "out" / prepared.prefix_of("d" * 16) / damaged
    path.write_bytes(INFINITE)
    for entry in rows["files"]:
        if entry["name"] == damaged:
            entry.update(size=len(INFINITE), crc32c=crc32c(path))
    storage.write(f"{prepared.prefix_of('d' * 16)}/{prepared.MANIFEST}", json.dumps(rows).encode())
    if damaged == prepared.STATISTICS:
        path.write_bytes(b'{"rows": Infinity}')
        entry = next(entry for entry in rows["files"] if entry["name"] == damaged)
        entry.update(size=path.stat().st_size, crc32c=crc32c(path))
        storage.write(f"{prepared.prefix_of('d' * 16)}/{prepared.MANIFEST}", json.dumps(rows).encode())
    with pytest.raises(DataInvalid, match="cannot be read") as refused:
        prepared.load(storage, storage.uri, "d" * 16, tmp_path / "cache")
    assert "Delete" in refused.value.remedy


@fuzzed
@given(content=stored({"version": 1, "files": [file("model.safetensors"), file("config.json")]}))
def test_any_manifest_of_a_copy_is_read_or_unusable(storage: Storage, content: bytes) -> None:
    storage.write(f"hf/a/b/c/{modelcache.MANIFEST}", content)
    try:
        assert Copy(storage.uri, "hf/a/b/c")._manifest() is not None
    except Unusable as error:
        told(str(error))


ASKED = {"prompts": ["One?", "Two?"], "maxNewTokens": 8}


@fuzzed
@given(content=stored({**ASKED, "answers": ["1", "2"]}))
def test_any_answers_of_before_are_taken_or_made_anew(storage: Storage, content: bytes) -> None:
    storage.write(samples.BEFORE, content)
    found = samples.left_before(storage, ASKED)
    assert found is None or [type(answer) for answer in found] == [str, str]


POINT = {"step": 1, "loss": 2.0, "learning_rate": 0.1, "gradient_norm": 1.0, "tokens_per_second": 9.0, "memory": 0}
KEPT = {"points": [POINT], "evaluations": [{"step": 1, "loss": 2.0}], "attempts": [], "waiting": []}
OF_CHECKPOINTS: dict[str, tuple[Any, Callable[[Path], object]]] = {
    "history.json": (KEPT, lambda folder: History.restored(1, folder).thinned()),
    "trainer_state.json": ({"global_step": 3, "log_history": [{"loss": 2.0}]}, forms.step_of),
    "best.json": ([3, 2.5], lambda folder: evaluation(folder / "scratch").restore(folder)),
}


def evaluation(folder: Path) -> Evaluation:
    made = Evaluation.__new__(Evaluation)
    made._best, made._folder = True, folder
    return made


@pytest.mark.parametrize("name", OF_CHECKPOINTS)
def test_any_state_of_a_checkpoint_is_read_or_refused(name: str, tmp_path: Path) -> None:
    """Its checksums are right, so that nothing else tells."""
    sound, restored = OF_CHECKPOINTS[name]
    (tmp_path / "best").mkdir()
    refused: list[tuple[bool, bool]] = []

    @fuzzed
    @given(stored(sound))
    def read_or_refused(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        try:
            restored(tmp_path)
        except InvalidConfig as error:
            refused.append((error.message.startswith(name), "Delete" in error.remedy))

    read_or_refused()
    assert set(refused) == {(True, True)}


CONFIG = {
    "model_type": "gemma3_text", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 1000, "sliding_window": 8, "vision_config": {},
}  # fmt: skip


@fuzzed
@given(content=stored(CONFIG), family=st.sampled_from(["gemma3_text", "gemma3", "paligemma", "gemma4"]))
def test_any_config_of_a_model_is_a_gemma_or_refused(tmp_path: Path, content: bytes, family: str) -> None:
    (tmp_path / "config.json").write_bytes(content.replace(b"gemma3_text", family.encode()))
    (tmp_path / "generation_config.json").write_bytes(content)
    assert isinstance(_published(tmp_path / "generation_config.json"), dict)
    try:
        model = ModelFiles("file:///model", "1", tmp_path).model
        assert model.label
        assert model.parameters
        json.dumps(catalog.planner_shape(json.loads((tmp_path / "config.json").read_bytes())))
    except InvalidConfig as error:
        told(error.message)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 0},
        {"intermediate_size": []},
        {"vocab_size": -1},
        {"sliding_window": "8"},
        {"head_dim": 1e300},
        {"max_position_embeddings": float("inf")},
    ],
)
def test_a_shape_that_no_planner_can_count_with_is_no_gemma(change: dict[str, Any]) -> None:
    """The operator reads it too: one run's model must not keep it busy for hours."""
    assert catalog.by_config(CONFIG) is not None
    assert catalog.by_config({**CONFIG, **change}) is None


KAGGLE = {"files": [{"name": "config.json", "totalBytes": "7"}], "nextPageToken": "", "versionNumber": 1}
MODELSCOPE = {"Code": 200, "Data": {"Files": [{"Path": "config.json", "Size": 7, "Sha256": "", "Type": "blob"}]}}


@fuzzed
@given(kaggle=stored(KAGGLE), modelscope=stored(MODELSCOPE), status=st.sampled_from([200, 200, 200, 404, 500]))
def test_any_answer_of_a_hub_is_files_or_an_end_in_words(
    monkeypatch: pytest.MonkeyPatch, kaggle: bytes, modelscope: bytes, status: int
) -> None:
    def answering(content: bytes) -> Callable[..., requests.Response]:
        answer = requests.Response()
        answer.status_code, answer._content, pages = status, content, iter(range(3))
        # A token of a next page for ever is a server's right; a test has an end.
        return lambda *_, **__: answer if next(pages, None) is not None else _raise(requests.ConnectionError("away"))

    for repository, content in (
        (Variation("kaggle://google/gemma-3/transformers/x", "1"), kaggle),
        (Repository("models", "ms://google/gemma", None, ""), modelscope),
    ):
        monkeypatch.setattr(repository._session, "get", answering(content))
        try:
            list(repository.files())
        except TrainerError as error:
            told(error.message)


def _raise(error: Exception) -> Any:
    raise error


def test_a_library_that_reads_json_which_is_nested_too_deep_ends_a_run_for_good() -> None:
    """transformers reads a model's files by itself: no accelerator is paid for again to find the same."""
    with pytest.raises(RecursionError) as caught:
        json.loads(DEEP)
    found = explain(caught.value)
    assert isinstance(found, InvalidConfig)
    assert "nested too deep" in found.message

    def forever(number: int) -> int:
        return forever(number + 1)

    with pytest.raises(RecursionError) as own:
        forever(0)
    assert explain(own.value) is None, "a fault of the code is none of a file"


def test_numbers_of_the_state_are_what_they_were(tmp_path: Path) -> None:
    """Infinities and NaN that a run may have seen come back, and what a backend has counted in floats."""
    point = {**POINT, "gradient_norm": float("inf"), "loss": float("nan"), "memory": 2.0}
    (tmp_path / "history.json").write_text(json.dumps({**KEPT, "points": [point]}))
    (found,) = History.restored(1, tmp_path).points
    assert np.isinf(found.gradient_norm)
    assert np.isnan(found.loss)
    assert found.memory == 2
