"""Where a base model comes from, what it is called, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT
from gemmatune_api.runconfig import RunModel
from gemmatune_trainer.errors import AccessDenied, InvalidConfig
from gemmatune_trainer.models import ModelFiles, fetch
from tests.support.fakegcs import FakeGcs

TinyModel = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A tiny Gemma 3 that a test may damage."""
    return Path(shutil.copytree(tiny_model("3"), tmp_path / "model"))


def local(folder: Path) -> RunModel:
    return RunModel(uri=folder.as_uri())


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://google/gemma-2-2b", ("google/gemma-2-2b", "rev")),
        ("file:///models/gemma-3-270m", ("google/gemma-3-270m", None)),
        ("file:///models/gemma-3-270m-it/", ("google/gemma-3-270m-it", None)),
        ("gs://bucket/models/gemma-2-2b-it", ("google/gemma-2-2b-it", None)),
        ("file:///models/mine", ("file:///models/mine", None)),
    ],
)
def test_the_base_that_an_adapter_names(uri: str, name: tuple[str, str | None]) -> None:
    assert ModelFiles(uri, "rev", Path("/nowhere")).published_name == name


def test_the_revision_of_a_directory_is_that_of_its_files(copy: Path) -> None:
    found = fetch(local(copy), weights=True)
    assert found.model.generation == "3"
    assert fetch(local(copy), weights=True, revision=found.revision).revision == found.revision
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InvalidConfig, match="changed since the run was prepared"):
        fetch(local(copy), weights=True, revision=found.revision)


def test_a_bucket_is_downloaded_once(
    copy: Path, fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors and JSON only; the tokenizer alone without the weights."""
    monkeypatch.setenv(ENV_GCS_ENDPOINT, fake_gcs.endpoint)
    name = fake_gcs.new_bucket()
    bucket = fake_gcs.client().bucket(name)
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    (copy / "modeling_x.py").write_text("raise SystemExit")
    for path in copy.iterdir():
        bucket.blob(f"m/{path.name}").upload_from_filename(str(path))
    model = RunModel(uri=f"gs://{name}/m")
    light = fetch(model, weights=False)
    assert not list(light.folder.glob("*.safetensors"))
    whole = fetch(model, weights=True, revision=light.revision)
    assert {path.name for path in whole.folder.iterdir()} == {
        path.name for path in copy.iterdir() if path.suffix in (".json", ".safetensors")
    }
    before = (whole.folder / "config.json").stat().st_mtime_ns
    again = fetch(model, weights=True)
    assert (again.folder, (again.folder / "config.json").stat().st_mtime_ns) == (whole.folder, before)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no config", "has no config.json"),
        ("broken config", "is no JSON"),
        ("llama", "model_type 'llama', which is no Gemma"),
        ("pickled", "holds no .safetensors file"),
        ("nowhere", "is no directory"),
    ],
)
def test_what_is_refused(copy: Path, damage: str, words: str) -> None:
    config = copy / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage == "broken config":
        config.write_text("{")
    elif damage == "llama":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "llama"}))
    elif damage == "pickled":
        (copy / "model.safetensors").rename(copy / "model.bin")
    else:
        shutil.rmtree(copy)
    with pytest.raises(InvalidConfig) as caught:
        fetch(local(copy), weights=True)
    assert words in caught.value.message
    assert caught.value.remedy


def test_a_bucket_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials Google's library has nothing to ask with."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", ENV_GCS_ENDPOINT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    from gemmatune_trainer.errors import explain

    with pytest.raises(Exception, match=r"none\.json") as caught:
        fetch(RunModel(uri="gs://bucket/model"), weights=False)
    assert isinstance(explain(caught.value), AccessDenied)
