"""Poisoned models, data and buckets: no code of theirs is run, and no name of theirs leads out of its folder."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gemmatune_api import yamlio
from gemmatune_api.names import ENV_CACHE, ENV_CLAIMS
from gemmatune_api.runconfig import RunDataset, RunModel
from gemmatune_cli import results
from gemmatune_cli.console import harmless
from gemmatune_trainer import checkpoints, claims, manifest
from gemmatune_trainer.checkpoints import Checkpoints
from gemmatune_trainer.data.sources import open_rows
from gemmatune_trainer.errors import InvalidConfig, TrainerError, explain
from gemmatune_trainer.models import fetch
from gemmatune_trainer.storage import crc32c, open_storage
from tests.support.standin import write_small_model

PAYLOAD = "import pathlib; pathlib.Path({!r}).touch()"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that exists once the attacker's code has run."""
    return tmp_path / "attacker-was-here"


class Attack:
    """Unpickled, it runs code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


def test_a_model_brings_no_code(tmp_path: Path, ran: Path) -> None:
    """Classes of its own, and a pickle beside the safetensors, are never touched."""
    folder = tmp_path / "gemma"
    write_small_model(folder, "3")
    code = PAYLOAD.format(str(ran))
    (folder / "evil.py").write_text(f"{code}\nclass Model:\n    pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Model")
        (folder / name).write_text(json.dumps(content))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(code)))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Attack(code)))
    files = fetch(RunModel(uri=folder.as_uri()), weights=True)
    assert files.tokenizer.find_id("<eos>") == files.tokenizer.eos_id
    assert not ran.exists()


def test_a_model_of_pickles_is_refused(tmp_path: Path, ran: Path) -> None:
    folder = tmp_path / "gemma"
    write_small_model(folder, "3")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(PAYLOAD.format(str(ran)))))
    with pytest.raises(InvalidConfig, match=r"holds no \.safetensors file") as refused:
        fetch(RunModel(uri=folder.as_uri()), weights=True)
    assert "safetensors" in refused.value.remedy
    assert not ran.exists()


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, (10**12).to_bytes(8, "little") + b"{}", b"\x02" + b"\x00" * 7 + b"{]"]
)
def test_damaged_weights_end_a_run_at_once(content: bytes, tmp_path: Path) -> None:
    """No accelerator is paid for again to find them damaged once more."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SafetensorError) as damaged:
        load_file(tmp_path / "model.safetensors")
    assert isinstance(explain(damaged.value), InvalidConfig)


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pt", "rows.py", "rows.npy", "rows.tar.gz", "rows.zip"])
def test_data_that_could_be_code_or_an_archive_is_refused(name: str, tmp_path: Path, ran: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Attack(PAYLOAD.format(str(ran)))))
    dataset = RunDataset.model_construct(
        uri=(tmp_path / name).as_uri(), split="train", limit=None, config=None, revision=None
    )
    with pytest.raises(TrainerError):
        next(open_rows(dataset, tmp_path))
    assert not ran.exists()


def test_no_module_loads_pickles_or_code_of_models() -> None:
    """Of the own code; what libraries do with a model is asked for by these very arguments."""
    root = Path(__file__).parents[2]
    sources = {path: path.read_text() for path in (root / "trainer_image/gemmatune_trainer").rglob("*.py")}
    for path, text in sources.items():
        assert "trust_remote_code=True" not in text, path
        assert "import pickle" not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/../../../outside", "..", ""])
def test_a_checkpoint_writes_nothing_outside_its_folder(name: str, tmp_path: Path) -> None:
    """Names of a bucket may hold `..`; whoever can write there must not write into the trainer's file system."""
    storage = open_storage((tmp_path / "out").as_uri())
    identity = {"resumeHash": "r", "dataHash": "d"}
    reader = Checkpoints.__new__(Checkpoints)
    prefix = checkpoints.prefix_of(100)
    (tmp_path / "bait").write_bytes(b"x")
    entry = {"name": name, "size": 1, "crc32c": crc32c(tmp_path / "bait")}
    manifest = {"version": checkpoints._VERSION, "step": 100, **identity, "files": [entry]}
    storage.write(f"{prefix}/{checkpoints.MANIFEST}", json.dumps(manifest).encode())
    reader._storage, reader._identity = storage, identity
    fault = reader._fetch(100, {f"{prefix}/{name}": 1}, tmp_path / "scratch" / "restored")
    assert "which lies outside it" in fault
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "name", ["adapter/../../outside", "adapter//tmp/outside", "/tmp/outside", "other/x", "adapter/"]
)
def test_a_merge_writes_nothing_outside_its_folder(name: str, tmp_path: Path) -> None:
    """It downloads what the manifest of the run names: one with such a name is no manifest of a run."""
    storage = open_storage((tmp_path / "out").as_uri())

    def found(name: str) -> manifest.Finished | None:
        files = [{"name": name, "size": 1, "sha256": "x"}]
        document = {"resumeHash": "r", "steps": 1, "artifacts": {}, "adapter": files}
        storage.write(manifest.NAME, json.dumps(document).encode())
        return manifest.find(storage, "r")

    assert found("adapter/adapter_model.safetensors") is not None
    assert found(name) is None


def test_a_volume_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "claims" / "data").mkdir(parents=True)
    monkeypatch.setenv(ENV_CLAIMS, str(tmp_path / "claims"))
    assert claims.path_of("pvc://data/rows.jsonl").endswith("/claims/data/rows.jsonl")
    with pytest.raises(InvalidConfig, match="leads out of the volume"):
        claims.path_of("pvc://data/../../secret.jsonl")


def test_a_report_is_written_where_one_stands(tmp_path: Path) -> None:
    """The name in a manifest of somebody else's bucket is no path."""
    output = tmp_path / "out"
    (output / "report").mkdir(parents=True)
    (output / "report/report.html").write_text("<html>")
    (output / "manifest.json").write_text(json.dumps({"run": {"name": "../../evil"}}))
    run = results.Run("x", output.as_uri())
    assert run.finished()["run"]["name"] == "../../evil"
    script = (
        "import sys; from gemmatune_cli import bucket, results, report; found = bucket.read;"
        "bucket.read = lambda uri: found(uri.replace('gs://bucket', sys.argv[1]));"
        "report.command('gs://bucket', '', '', '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, output.as_uri()], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "the manifest names the run '../../evil'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_yaml_bomb_is_refused() -> None:
    aliases = (f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 10))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]", *aliases]
    with pytest.raises(yamlio.YamlError, match="more than 100000 values"):
        yamlio.load_all("\n".join(lines))
    with pytest.raises(yamlio.YamlError):
        yamlio.load_all("a: " + "[" * 100_000)
    with pytest.raises(yamlio.YamlError):
        yamlio.load_all("a: !!python/object/apply:os.system [id]")


def test_a_status_cannot_steer_a_terminal() -> None:
    """A compromised trainer's samples, or a model's own answer, hold no escape sequence when gft shows them."""
    nasty = {"samples": [{"after": "a\x1b]0;title\x07\x1b[2J\x9b31m\r\x00b\n\tc"}], "progress": {"loss": 1.5}}
    shown = harmless(nasty)
    text = shown["samples"][0]["after"]
    assert not [character for character in text if ord(character) < 32 and character not in "\n\t"]
    assert "\x9b" not in text
    assert text.endswith("b\n\tc")
    assert shown["progress"] == {"loss": 1.5}
