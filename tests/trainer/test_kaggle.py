"""Weights from Kaggle: which version and files are fetched, and what a person is told, against Kaggle on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from urllib3.util import Retry

from gemmatune_api.names import ENV_CACHE
from gemmatune_api.runconfig import RunModel
from gemmatune_trainer.errors import AccessDenied, HubUnavailable, InvalidConfig, TrainerError
from gemmatune_trainer.kaggle import ENDPOINT_VARIABLE, KEY_VARIABLE, USER_VARIABLE
from gemmatune_trainer.models import fetch
from tests.support.kaggle import KEY, USER, Kaggle
from tests.support.tinymodels import write_model

NAME = "google/gemma-2/transformers/gemma-2-2b"
URI = f"kaggle://{NAME}"


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """Two versions of a gated Gemma 2, with files that nobody wants, and an account that may read them."""
    monkeypatch.setattr(Retry, "get_backoff_time", lambda self: 0.0)
    for name, value in ((ENV_CACHE, str(tmp_path / "cache")), (USER_VARIABLE, USER), (KEY_VARIABLE, KEY)):
        monkeypatch.setenv(name, value)
    files = {path.name: path.read_bytes() for path in write_model(tmp_path / "model", "2").iterdir()}
    with Kaggle() as running:
        monkeypatch.setenv(ENDPOINT_VARIABLE, running.endpoint)
        running.add(NAME, {**files, "model.bin": b"pickled", "more/config.json": b"{}"}, 1, gated=True)
        running.add(NAME, {**files, "generation_config.json": b"{}"}, 2)
        yield running


def refusal(kind: type[TrainerError], model: RunModel) -> TrainerError:
    with pytest.raises(kind) as caught:
        fetch(model, weights=True)
    return caught.value


def test_the_newest_version_is_fetched_once(kaggle: Kaggle, tmp_path: Path) -> None:
    found = fetch(RunModel(uri=URI), weights=True)
    assert found.revision == "2"
    assert found.model.generation == "2"
    wanted = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert (found.folder / "model.safetensors").read_bytes() == wanted
    assert (found.folder / "generation_config.json").exists()
    assert not kaggle.leaked, "the store must not see the key"
    asked = [path for path in kaggle.requests if "/download/" in path]
    again = fetch(RunModel(uri=URI), weights=True, revision="2")
    assert again.folder == found.folder
    assert [path for path in kaggle.requests if "/download/" in path] == asked


def test_another_version_and_only_what_is_wanted(kaggle: Kaggle) -> None:
    found = fetch(RunModel(uri=URI, revision="1"), weights=False)
    names = {path.name for path in found.folder.iterdir()}
    assert found.revision == "1"
    assert "config.json" in names
    assert not names & {"model.safetensors", "model.bin", "more"}


def test_what_prepare_resolved_counts(kaggle: Kaggle) -> None:
    """A newer version that appears in between changes nothing."""
    files = kaggle.variations[NAME].versions[2]
    kaggle.add(NAME, {**files, "config.json": b"{}"}, 3)
    assert fetch(RunModel(uri=URI), weights=True, revision="2").model.generation == "2"


def test_a_download_that_breaks_goes_on_where_it_broke(
    kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmatune_trainer.resumable._CHUNK_BYTES", 16)  # what came before the break is kept
    kaggle.breaks = 3
    found = fetch(RunModel(uri=URI), weights=True)
    for path in (tmp_path / "model").iterdir():
        assert (found.folder / path.name).read_bytes() == path.read_bytes()
    assert kaggle.ranges


def test_a_file_that_arrives_damaged_is_refused(kaggle: Kaggle) -> None:
    kaggle.wrong = True
    assert "arrived damaged" in refusal(HubUnavailable, RunModel(uri=URI)).message


def test_who_may_not_read_is_told(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "kaggle-bad")
    wrong = refusal(AccessDenied, RunModel(uri=URI))
    assert "the key may not read it (HTTP 401 Unauthenticated)" in wrong.message
    assert "KAGGLE_USERNAME and KAGGLE_KEY" in wrong.remedy
    monkeypatch.delenv(KEY_VARIABLE)
    without = refusal(AccessDenied, RunModel(uri=URI))
    assert "needs a key" in without.message
    assert "Permission 'models.get' was denied" in without.message


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (RunModel(uri=URI, revision="7"), AccessDenied, "does not exist in version 7"),
        (RunModel(uri=URI, revision="main"), InvalidConfig, "has no version 'main'"),
        (RunModel(uri="kaggle://google/gemma-2/transformers/none"), AccessDenied, "does not exist"),
    ],
)
def test_what_is_not_there_is_told(kaggle: Kaggle, model: RunModel, kind: type[TrainerError], words: str) -> None:
    assert words in refusal(kind, model).message


def test_a_variation_without_safetensors(kaggle: Kaggle) -> None:
    files = kaggle.variations[NAME].versions[2]
    kaggle.add("google/gemma-2/transformers/old", {"config.json": files["config.json"], "model.bin": b"x"})
    found = refusal(InvalidConfig, RunModel(uri="kaggle://google/gemma-2/transformers/old"))
    assert "holds no .safetensors file" in found.message


def test_kaggle_that_does_not_answer(kaggle: Kaggle) -> None:
    kaggle.failing = HTTPStatus.SERVICE_UNAVAILABLE
    assert "HTTP 503 Kaggle is out of order" in refusal(HubUnavailable, RunModel(uri=URI)).message
