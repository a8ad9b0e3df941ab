"""The site's copies of hub models: made once, read by every attempt, believed only as far as hub and manifest agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.names import ENV_CACHE, ENV_GCS_ENDPOINT, ExitCode
from gemmatune_api.runconfig import RunConfig, RunModel
from gemmatune_trainer import modelcache, modelscope
from gemmatune_trainer.models import ModelFiles, fetch, keep_copy
from tests.support.fakegcs import FakeGcs
from tests.support.faultygcs import FaultyGcs
from tests.support.hub import TOKEN, Hub
from tests.support.modelscope import ModelScope
from tests.support.tinymodels import write_model
from tests.support.trainerhost import TrainerHost, TrainerProcess

MakeConfig = Callable[..., RunConfig]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with one gated model."""
    folder = write_model(tmp_path_factory.mktemp("published"), "3")
    with Hub() as running:
        running.add("models", "team/tiny", {path.name: path.read_bytes() for path in folder.iterdir()}, access="gated")
        yield running


@pytest.fixture(scope="module")
def host(hub: Hub) -> Iterator[TrainerHost]:
    """Trainer processes that know the hub; its library reads the address when it is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment(TOKEN).items():
            patch.setenv(name, value)
        with TrainerHost() as running:
            yield running


def of_hub(config: RunConfig, cache: str, **changes: Any) -> RunConfig:
    """The same run of the hub's model, with a cache."""
    return config.model_copy(update={"model": RunModel(uri="hf://team/tiny", cache=cache), **changes})


def into(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": folder.as_uri()})})


def done(
    host: TrainerHost, role: str, config: RunConfig, folder: Path, env: dict[str, str] | None = None
) -> TrainerProcess:
    """A role that ends well, on a machine of its own: nothing is in its scratch folder."""
    run = host.run(role, config, folder / role, {ENV_CACHE: str(folder / f"{role}-cache"), **(env or {})})
    assert run.poll() == ExitCode.DONE, run.log()
    return run


def note(run: TrainerProcess) -> str:
    found = from_text((run.folder / "termination").read_text(), PrepareResult)
    assert found is not None
    return found.message


def downloads(hub: Hub) -> int:
    return sum(method == "GET" and path.endswith(WEIGHTS) for method, path, _ in hub.requests)


def test_the_second_run_downloads_no_weights(
    make_config: MakeConfig, hub: Hub, host: TrainerHost, fake_gcs: FakeGcs, tmp_path: Path
) -> None:
    bucket = fake_gcs.new_bucket()
    env = {ENV_GCS_ENDPOINT: fake_gcs.endpoint}
    config = of_hub(make_config(), f"gs://{bucket}/models/")
    adapters = []
    before = downloads(hub)
    for name, said in (("one", "copy of the model made"), ("two", "copy of the model found")):
        run = into(config, tmp_path / name / "out")
        prepared = done(host, "prepare", run, tmp_path / name, env)
        assert len(prepared.events(said)) == 1, prepared.log()
        assert note(prepared).endswith("trained."), "nothing to say of a copy that works"
        sent = hub.sent
        trained = done(host, "train", run, tmp_path / name, env)
        assert hub.sent == sent, "the trainer got no byte of a file from the hub"
        assert len(trained.events("model read from its copy")) == 1
        adapters.append((tmp_path / name / "out/adapter/adapter_model.safetensors").read_bytes())
    assert downloads(hub) - before == 1
    assert adapters[0] == adapters[1]
    commit = hub.find("models", "team/tiny").commit("main")
    assert {name.removeprefix(f"models/hf/team/tiny/{commit}/") for name in fake_gcs.names(bucket)} == {
        "config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, modelcache.MANIFEST,
    }  # fmt: skip


def test_a_bucket_that_refuses_ends_no_run(
    make_config: MakeConfig, hub: Hub, host: TrainerHost, fake_gcs: FakeGcs, tmp_path: Path
) -> None:
    """First it may be read and not written, then neither."""
    bucket = fake_gcs.new_bucket()
    config = into(of_hub(make_config(), f"gs://{bucket}/models"), tmp_path / "out")
    with FaultyGcs(fake_gcs.endpoint) as proxy:
        env = {ENV_GCS_ENDPOINT: proxy.endpoint}
        proxy.fault("POST", "", times=1000, code=403)
        prepared = done(host, "prepare", config, tmp_path, env)
        assert f"The copy of the model below gs://{bucket}/models is not made (writing gs://{bucket}" in note(prepared)
        assert note(prepared).endswith("its weights come from the hub.")
        proxy.fault("GET", "", times=1000, code=403)
        before = downloads(hub)
        trained = done(host, "train", config, tmp_path, env)
    (warning,) = trained.events("the copy of the model is not used")
    assert warning["level"] == "warning"
    assert "is refused" in warning["why"]
    assert downloads(hub) - before == 1


def test_a_full_cache_ends_no_run(make_config: MakeConfig, host: TrainerHost, tmp_path: Path) -> None:
    """A file system that holds the file once, on the way from the hub, and not a second time, as a copy."""
    here = tmp_path / "small"
    config = into(of_hub(make_config(), (here / "copies").as_uri()), tmp_path / "out")
    run = host.start("prepare", config, tmp_path / "prepare", {ENV_CACHE: str(here)}, disk=700_000)
    assert run.wait() == ExitCode.DONE, run.log()
    assert "is not made" in note(run)
    assert "No space left on device" in note(run)
    assert (tmp_path / "out/run.json").exists()


# What may be wrong with a copy, by a hub whose address is read at every call.


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelScope]:
    folder = write_model(tmp_path / "published", "3")
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "machine"))
    with ModelScope() as running:
        monkeypatch.setenv(modelscope.ENDPOINT_VARIABLE, running.endpoint)
        running.add("models", "team/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
        yield running


@pytest.fixture
def model(tmp_path: Path) -> RunModel:
    return RunModel(uri="ms://team/tiny", cache=(tmp_path / "copies").as_uri())


def copied(model: RunModel, tmp_path: Path) -> tuple[Path, str]:
    """Makes the copy; its folder, and the revision."""
    revision = fetch(model, weights=False).revision
    assert keep_copy(model, revision) == ""
    return tmp_path / "copies/ms/team/tiny" / revision, revision


def elsewhere(model: RunModel, revision: str, tmp_path: Path) -> tuple[ModelFiles, list[Any]]:
    """The model on a machine that has nothing of it yet, and what the log says."""
    shutil.rmtree(tmp_path / "machine")
    with capture_logs() as logs:
        return fetch(model, weights=True, revision=revision), [line for line in logs if "copy" in line["event"]]


def rewrite(copy: Path, name: str, data: bytes) -> None:
    """Puts another file into a copy, with a manifest that vouches for it."""
    (copy / name).write_bytes(data)
    manifest = json.loads((copy / modelcache.MANIFEST).read_text())
    (entry,) = [file for file in manifest["files"] if file["name"] == name]
    digest = modelcache.digest_of(copy / name, "sha256").removeprefix("sha256:")
    entry.update(size=len(data), sha256=digest, crc32c=modelcache.crc32c(copy / name))
    (copy / modelcache.MANIFEST).write_text(json.dumps(manifest))


def test_a_copy_serves_where_the_hub_is_down(published: ModelScope, model: RunModel, tmp_path: Path) -> None:
    copy, revision = copied(model, tmp_path)
    published.failing = HTTPStatus.BAD_REQUEST
    found, said = elsewhere(model, revision, tmp_path)
    assert [line["event"] for line in said] == [
        "the hub does not tell what a copy must be: its manifest does", "model read from its copy",
    ]  # fmt: skip
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {
        path.name: path.read_bytes() for path in copy.iterdir() if path.name != modelcache.MANIFEST
    }


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (
        lambda copy: (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-1] + b"x"), f"{WEIGHTS} has sha256:"
    ),
    "a file is gone": (lambda copy: (copy / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "other weights, vouched for": (lambda copy: rewrite(copy, WEIGHTS, b"other"), "the hub says sha256:"),
    "another template, vouched for": (lambda copy: rewrite(copy, "config.json", b"{}"), "the hub says sha256:"),
    "no manifest": (lambda copy: (copy / modelcache.MANIFEST).unlink(), "there is none yet"),
    "half a manifest": (lambda copy: (copy / modelcache.MANIFEST).write_text("{"), "manifest.json cannot be read"),
    "a manifest of a newer release": (
        lambda copy: (copy / modelcache.MANIFEST).write_text('{"version": 9, "files": []}'), "has version 9"
    ),
    "a name that leads out": (
        lambda copy: (copy / modelcache.MANIFEST).write_text(
            '{"version": 1, "files": [{"name": "../x.json", "size": 1, "sha256": "", "crc32c": ""}]}'
        ),
        "which is no file of a model",
    ),
    "a pickle": (
        lambda copy: (copy / modelcache.MANIFEST).write_text(
            '{"version": 1, "files": [{"name": "pytorch_model.bin", "size": 1, "sha256": "", "crc32c": ""}]}'
        ),
        "which is no file of a model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_copy_is_not_used_and_the_hub_is_asked(
    published: ModelScope, model: RunModel, damage: str, tmp_path: Path
) -> None:
    """And the next preparation makes a new one, where it can see what is wrong."""
    copy, revision = copied(model, tmp_path)
    right = {path.name: path.read_bytes() for path in copy.iterdir()}
    change, words = DAMAGES[damage]
    change(copy)
    found, said = elsewhere(model, revision, tmp_path)
    (line,) = said
    assert (line["event"], line["log_level"]) == ("the copy of the model is not used", "warning")
    assert words in line["why"]
    assert (found.folder / WEIGHTS).read_bytes() == right[WEIGHTS]
    assert list((tmp_path / "machine/models").iterdir()) == [found.folder], "nothing of it is left"
    assert keep_copy(model, revision) == ""
    if damage != "a bit":  # a folder, unlike a bucket, knows no checksum without reading
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == right


def test_a_large_file_is_left_to_the_trainers(
    published: ModelScope, model: RunModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelcache, "LARGEST_FILE", 1000)
    said = keep_copy(model, fetch(model, weights=False).revision)
    assert "is larger than 0 GB, which a preparation does not copy" in said
    assert published.sent < 100_000


def test_a_model_that_is_in_a_bucket_already_has_no_copy(published: ModelScope, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine", "3")
    own = RunModel(uri=folder.as_uri(), cache=(tmp_path / "copies").as_uri())
    found = fetch(own, weights=True)
    assert keep_copy(own, found.revision) == ""
    assert not (tmp_path / "copies").exists()
