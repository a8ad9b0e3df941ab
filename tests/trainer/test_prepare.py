"""Prepare from end to end: processes with exit codes and termination messages, on file://, gs:// and the hub double."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.names import (
    ENV_CACHE,
    ENV_CLAIMS,
    ENV_GCS_ENDPOINT,
    ENV_RUN,
    ENV_TERMINATION_LOG,
    ExitCode,
    Reason,
)
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.data import prepared
from gemmatune_trainer.errors import DataInvalid, Interrupted, InvalidConfig, OutputInUse
from gemmatune_trainer.prepare import prepare, summary
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.storage import open_storage
from tests.support.hub import TOKEN, Hub
from tests.support.standin import write_small_model
from tests.trainer.conftest import run_config, write_quotes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration of 24 quotes and a model of generation 2 without weights that could be loaded."""
    write_small_model(tmp_path / "model", "2")
    data = write_quotes(tmp_path / "quotes.jsonl")

    def make(output: str = f"file://{tmp_path}/out", **changes: Any) -> RunConfig:
        return run_config(tmp_path / "model", data, output, **changes)

    return make


def process(
    config: RunConfig, folder: Path, *arguments: str, **environment: str
) -> tuple[int, PrepareResult | None, str]:
    """Runs the trainer as a process: exit code, termination message and standard output."""
    message = folder / "termination"
    message.unlink(missing_ok=True)
    variables = {ENV_RUN: config.to_env(), ENV_TERMINATION_LOG: str(message), **environment}
    done = subprocess.run(
        [sys.executable, "-m", "gemmatune_trainer", *(arguments or ("prepare",))],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, from_text(message.read_text() if message.exists() else None, PrepareResult), done.stdout


def test_a_process_prepares_and_says_what_it_found(config, tmp_path):
    code, message, _ = process(config(), tmp_path)
    assert code == ExitCode.DONE
    assert message is not None
    assert message.model is not None
    assert message.data is not None
    assert message.reason == Reason.PREPARED
    assert (message.model.family, message.model.size) == ("gemma2", None)
    assert len(message.model.revision) == 16
    assert message.model.shape["num_hidden_layers"] == 2
    assert (message.data.rows, message.data.duplicates, message.data.dropped_rows) == (24, 0, 0)
    assert message.data.labelled_tokens == message.data.tokens - 24  # all but each row's BOS
    trained = message.data.labelled_tokens
    assert message.message == f"24 rows are prepared: {message.data.tokens} tokens, {trained} of them trained."
    storage = open_storage(f"file://{tmp_path}/out")
    names = [item.name for item in storage.list()]
    folder = f"prepared/{message.data.hash}"
    assert names == [f"{folder}/manifest.json", f"{folder}/rows.arrow", f"{folder}/statistics.json", "run.json"]
    record = json.loads(storage.read("run.json"))
    assert (record["uid"], record["dataHash"]) == ("uid-1", message.data.hash)
    assert record["modelRevision"] == message.model.revision
    data = prepared.load(storage, storage.uri, message.data.hash, tmp_path / "loaded")
    assert data.rows == 24
    assert [path for path in (tmp_path / "cache" / "data").rglob("*") if path.is_file()] == []


def test_model_and_data_are_read_from_mounted_volumes(config, tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_CLAIMS, str(tmp_path / "claims"))
    by_file = prepare(config(), StopFlag())
    (tmp_path / "claims" / "team-data" / "deep").mkdir(parents=True)
    (tmp_path / "model").rename(tmp_path / "claims" / "team-data" / "gemma")
    (tmp_path / "quotes.jsonl").rename(tmp_path / "claims" / "team-data" / "deep" / "quotes.jsonl")
    volumes = config(f"file://{tmp_path}/other")

    def on_claim(**uris: str) -> RunConfig:
        blocks = {name: getattr(volumes, name).model_copy(update={"uri": uri}) for name, uri in uris.items()}
        return volumes.model_copy(update=blocks)

    found = prepare(on_claim(model="pvc://team-data/gemma", dataset="pvc://team-data/deep/*.jsonl"), StopFlag())
    assert found.data == by_file.data
    assert found.model == by_file.model
    with pytest.raises(InvalidConfig, match="no volume of the claim 'absent' is mounted"):
        prepare(on_claim(model="pvc://absent/gemma", dataset="pvc://team-data/deep"), StopFlag())
    with pytest.raises(InvalidConfig, match="does not exist"):
        prepare(on_claim(model="pvc://team-data/gemma", dataset="pvc://team-data/nothing.jsonl"), StopFlag())


def test_a_second_preparation_reuses_the_rows(config, tmp_path):
    first = prepare(config(), StopFlag())
    assert first.data is not None
    rows = tmp_path / "out" / "prepared" / first.data.hash / "rows.arrow"
    before = rows.stat()
    again = prepare(config(attempt=2), StopFlag())
    assert again.data == first.data
    assert again.model == first.model
    assert rows.stat() == before
    rows.write_bytes(b"damaged")
    assert prepare(config(attempt=3), StopFlag()).data == first.data
    assert rows.stat().st_size == before.st_size


def test_a_correction_before_the_first_attempt_is_prepared_anew(config, tmp_path):
    first = prepare(config(), StopFlag()).data
    second = prepare(config(max_length=16), StopFlag()).data
    assert first is not None
    assert second is not None
    assert second.hash != first.hash
    assert second.truncated_rows > 0
    assert f"{second.truncated_rows} rows were cut at dataset.maxLength" in summary(second)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["dataHash"] == second.hash


def test_another_runs_output_is_not_touched(config, tmp_path):
    prepare(config(), StopFlag())
    other = {"name": "other", "namespace": "default", "uid": "uid-2"}
    mine = config(max_length=16).model_copy(update={"run": config().run.model_copy(update=other)})
    storage = open_storage(f"file://{tmp_path}/out")
    before = storage.list()
    code, message, _ = process(mine, tmp_path)
    assert code == ExitCode.OUTPUT_IN_USE
    assert message is not None
    assert message.reason == Reason.OUTPUT_IN_USE
    assert "default/quotes" in message.message
    assert message.data is None
    assert storage.list() == before
    with pytest.raises(OutputInUse):
        prepare(mine, StopFlag())


def test_wrong_data_is_told_before_the_output_is_taken(config, tmp_path):
    (tmp_path / "quotes.jsonl").write_text('{"text": "a", "from": "b"}\n{"text": "a", "author": "b"}\n')
    code, message, _ = process(config(), tmp_path)
    assert code == ExitCode.DATA_INVALID
    assert message is not None
    assert message.message == ("quotes.jsonl line 2: there is no column 'from'; the columns are 'text', 'author'")
    assert message.remedy
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama', which is no Gemma"),
        ({"model_type": "gemma4_text"}, "no token '<|turn>'"),
        ({"hidden_size": None}, "no Gemma"),
    ],
)
def test_other_models_are_refused(changes, message, config, tmp_path):
    write_small_model(tmp_path / "model", "2", **changes)
    with pytest.raises(InvalidConfig, match="model") as caught:
        prepare(config(), StopFlag())
    assert message in caught.value.message


def test_a_model_without_its_tokenizer_is_refused(config, tmp_path):
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(InvalidConfig, match=r"has no tokenizer\.json"):
        prepare(config(), StopFlag())


def test_fewer_rows_than_a_step_are_refused(config):
    with pytest.raises(DataInvalid, match=r"24 rows, one step needs training\.globalBatchSize = 25"):
        prepare(config(global_batch_size=25), StopFlag())


def test_all_rows_cut_away_is_refused(config, tmp_path):
    write_small_model(tmp_path / "model", "2")
    with pytest.raises(DataInvalid, match="no row is left to train on: all 24 rows are longer"):
        prepare(config(max_length=3, too_long="drop"), StopFlag())


def test_an_output_that_cannot_be_a_directory_is_refused(config, tmp_path):
    (tmp_path / "out").write_text("a file, not a directory")
    uri = f"file://{tmp_path}/out/below"
    code, message, _ = process(config(output=uri), tmp_path)
    assert code == ExitCode.INVALID_CONFIG
    assert message is not None
    assert message.message == f"output.uri: {uri} cannot be written: Not a directory"


def test_prepare_on_a_bucket(config, tmp_path, fake_gcs, bucket, monkeypatch):
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    client = fake_gcs.client().bucket(bucket)
    for path in (tmp_path / "model").iterdir():
        client.blob(f"models/small/{path.name}").upload_from_filename(str(path))
    client.blob("data/quotes.jsonl").upload_from_filename(str(tmp_path / "quotes.jsonl"))
    remote = config(output=f"gs://{bucket}/runs/one")
    remote = remote.model_copy(
        update={
            "model": remote.model.model_copy(update={"uri": f"gs://{bucket}/models/small"}),
            "dataset": remote.dataset.model_copy(update={"uri": f"gs://{bucket}/data/*.jsonl"}),
        }
    )
    result = prepare(remote, StopFlag())
    assert result.data is not None
    local = prepare(config(), StopFlag())
    assert local.data == result.data  # where rows and tokenizer lie does not matter
    folder = f"runs/one/prepared/{result.data.hash}"
    assert fake_gcs.names(bucket, "runs/") == [
        *(f"{folder}/{name}" for name in ("manifest.json", "rows.arrow", "statistics.json")),
        "runs/one/run.json",
    ]


class StopsAt(StopFlag):
    """Is raised at the n-th look."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self._looks_left = look

    def check(self, doing: str) -> None:
        self._looks_left -= 1
        if self._looks_left == 0:
            self.request("SIGTERM")
        super().check(doing)


@pytest.mark.parametrize(("look", "doing"), [(10, "the data was read"), (25, "the data was tokenised")])
def test_a_preparation_that_is_stopped_leaves_nothing_half_done(look, doing, config, tmp_path):
    with pytest.raises(Interrupted, match=f"SIGTERM came before {doing}"):
        prepare(config(), StopsAt(look))
    assert not (tmp_path / "out" / "prepared").exists()
    assert [path for path in (tmp_path / "cache" / "data").rglob("*") if path.is_file()] == []
    assert prepare(config(), StopFlag()).data is not None


# Access.


def hub_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_gated_models_say_where_to_accept_the_licence(config, tmp_path):
    with Hub() as hub:
        commit = hub.add("models", "google/gemma-2-small", hub_files(tmp_path / "model"), access="gated")
        gated = config()
        gated = gated.model_copy(update={"model": gated.model.model_copy(update={"uri": "hf://google/gemma-2-small"})})
        home = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        code, message, _ = process(gated, tmp_path, **{**home, **hub.environment()})
        assert code == ExitCode.ACCESS_DENIED
        assert message is not None
        assert message.reason == Reason.ACCESS_DENIED
        assert "licence" in message.remedy
        assert not (tmp_path / "out").exists()
        code, message, _ = process(gated, tmp_path, **{**home, **hub.environment(TOKEN)})
        assert code == ExitCode.DONE
        assert message is not None
        assert message.model is not None
        assert message.model.revision == commit
        # Weights are the trainer's: prepare leaves them where they are.
        assert not any(
            "safetensors" in path for method, path, _ in hub.requests if method == "GET" and "resolve" in path
        )


def test_a_hub_out_of_order_is_not_the_users_fault(config, tmp_path):
    with Hub() as hub:
        hub.add("models", "google/gemma-2-small", hub_files(tmp_path / "model"))
        hub.failing = HTTPStatus.SERVICE_UNAVAILABLE
        remote = config()
        remote = remote.model_copy(
            update={"model": remote.model.model_copy(update={"uri": "hf://google/gemma-2-small"})}
        )
        code, message, _ = process(remote, tmp_path, HF_HOME=str(tmp_path / "home"), **hub.environment())
    assert code == ExitCode.HUB_UNAVAILABLE
    assert message is not None
    assert message.reason == Reason.HUB_UNAVAILABLE
    assert "503" in message.message


# Inspect.


def test_inspect_prints_tokens_and_labels(config, tmp_path):
    short = config(max_length=16)
    code, _, out = process(short, tmp_path, "inspect", "-n", "2")
    assert code == ExitCode.DONE
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["row"] for row in rows] == ["quotes.jsonl line 1", "quotes.jsonl line 2"]
    for row in rows:
        assert row["text"].startswith("<bos>Quote: ")
        assert row["text"].endswith("<eos>")
        assert row["labels"] == [False, *[True] * (len(row["tokens"]) - 1)]
        assert row["tokens"][:3] == ["<bos>", "Quote", ":"]
        assert len(row["tokens"]) == min(row["length"], 16)
        assert row["cut"] == max(0, row["length"] - 16)
        assert row["dropped"] is False
    assert any(row["cut"] for row in rows)
    assert not (tmp_path / "out").exists()


def test_inspect_refuses_other_arguments(config, tmp_path):
    for arguments in (["-n", "zero"], ["-x"]):
        code, message, _ = process(config(), tmp_path, "inspect", *arguments)
        assert code == ExitCode.INVALID_CONFIG
        assert message is not None
        assert "inspect" in message.message


@pytest.mark.parametrize(
    ("generation", "settings", "words"),
    [
        ("2", {"tie_word_embeddings": False}, "tie_word_embeddings false"),
        ("2", {"query_pre_attn_scalar": 17}, "query_pre_attn_scalar 17"),
        (
            "3",
            {"layer_types": ["full_attention"], "rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type 'yarn' of full_attention",
        ),
        ("4", {}, "backend keras does not train models of type gemma4_text"),
    ],
)
def test_what_keras_cannot_compute_is_told_before_an_accelerator_starts(config, tmp_path, generation, settings, words):
    """By config.json alone, in an environment without Keras; backend torch takes the same model."""
    wanted = config()
    write_small_model(tmp_path / "model", generation)
    described = tmp_path / "model" / "config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), **settings}))
    with pytest.raises(InvalidConfig) as raised:
        prepare(wanted.model_copy(update={"backend": "keras"}), StopFlag())
    assert words in raised.value.message
    assert "backend torch" in raised.value.remedy
    assert not (tmp_path / "out" / "run.json").exists(), "nothing is claimed"
    assert prepare(wanted, StopFlag()).reason == Reason.PREPARED


@pytest.mark.parametrize(("tokens_of", "model_type"), [("3", "gemma3n_text"), ("4", "gemma4_text")])
def test_what_xla_does_not_train_is_told_before_an_accelerator_starts(config, tmp_path, tokens_of, model_type):
    wanted = config()
    write_small_model(tmp_path / "model", tokens_of, model_type=model_type, intermediate_size=[128, 128])
    with pytest.raises(InvalidConfig) as raised:
        prepare(wanted.model_copy(update={"backend": "xla"}), StopFlag())
    assert raised.value.message == f"model.uri: backend xla does not train models of type {model_type}"
    assert raised.value.remedy == "Use a Gemma 1, 2 or 3 model, or backend torch, which trains on GPUs and CPUs."
    assert not (tmp_path / "out" / "run.json").exists(), "nothing is claimed"
    assert prepare(wanted, StopFlag()).reason == Reason.PREPARED


@pytest.mark.parametrize(
    ("backend", "names", "found"),
    [("keras", ["q_proj", "lm_head"], "lm_head names no module"), ("xla", ["qproj"], "qproj names no module")],
)
def test_modules_that_the_model_has_not_are_told_before_an_accelerator_starts(config, backend, names, found):
    wanted = config(target_modules=names).model_copy(update={"backend": backend})
    with pytest.raises(InvalidConfig) as raised:
        prepare(wanted, StopFlag())
    assert f"lora.targetModules {found}" in raised.value.message
    assert raised.value.remedy.startswith("Use all-linear, attention, or a list of q_proj")
