"""The merge of a finished run, as processes on tiny models: its bits, its manifest, and every way it ends."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gemmatune_api.names import ENV_GCS_ENDPOINT, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG, ExitCode, Reason
from gemmatune_api.resume import resume_hash
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.merger import set_terminators
from gemmatune_trainer.merge import KNOWN_TOKENS, LONGEST_ROW, known_rows
from tests.support.fakegcs import FakeGcs
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.trainer.conftest import GENERATIONS, run_config, write_quotes

MakeConfig = Callable[..., RunConfig]


def output(config: RunConfig) -> Path:
    return Path(config.output.uri.removeprefix("file://"))


def numbered(config: RunConfig, number: int) -> RunConfig:
    return config.model_copy(update={"attempt": number})


def trained(host: TrainerHost, config: RunConfig, folder: Path, env: dict[str, str] | None = None) -> RunConfig:
    for role in ("prepare", "train"):
        run = host.run(role, config, folder / role, env)
        assert run.poll() == ExitCode.DONE, run.log()
    return config


def manifest(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output(config) / "merged" / "manifest.json").read_text())
    return found


def done(run: TrainerProcess) -> TrainerProcess:
    assert run.poll() == ExitCode.DONE, run.log()
    return run


def expected(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Every weight of the merged model, by formula: the 16-bit base plus (alpha / r) B A in fp32, rounded once."""
    weights = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    tensors = load_file(adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    merged = 0
    for name, down in tensors.items():
        if ".lora_A." not in name:
            continue
        target = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
        if target not in weights:  # Gemma 3 with images is published under the names of its first release
            target = target.replace("model.language_model.", "language_model.model.")
        delta = tensors[name.replace(".lora_A.", ".lora_B.")] @ down * scale
        weights[target] = (weights[target].float() + delta).bfloat16()
        merged += 1
    assert merged == len(tensors) // 2 > 0
    return weights


def assert_merged(config: RunConfig) -> None:
    base = Path(config.model.uri.removeprefix("file://"))
    wanted = expected(base, output(config) / "adapter")
    found = load_file(output(config) / "merged" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_weight_is_base_plus_delta_rounded_once(
    generation: str, make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = trained(trainer_host, make_config(generation), tmp_path)
    status = json.loads((tmp_path / "train" / "status.json").read_text())
    env = {ENV_STATUS_FILE: str(tmp_path / "train" / "status.json")}
    run = done(trainer_host.run("merge", config, tmp_path / "merge", env))
    assert_merged(config)
    folder = output(config) / "merged"
    assert "lm_head.weight" not in load_file(folder / "model.safetensors"), "tied weights are stored once"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(folder).chat_template
    text = (folder / "config.json").read_text()
    assert str(tmp_path) not in text, "no path of the pod"
    assert json.loads(text).get("use_cache", True)
    # What it says, and that it keeps all else.
    verified = manifest(config)["verified"]
    assert verified["merged_loss"] == pytest.approx(verified["adapter_loss"], rel=0.02)
    assert verified["adapter_loss"] < verified["base_loss"]
    assert verified["difference"] < 0.05
    assert 0 < verified["tokens"] < 2 * KNOWN_TOKENS
    assert run.message.manifest == (folder / "manifest.json").as_uri()
    assert f"merged {verified['merged_loss']:.4g}" in run.message.message
    artifacts = {**status["artifacts"], "merged": folder.as_uri()}
    after = json.loads((tmp_path / "train" / "status.json").read_text())
    assert after["artifacts"] == artifacts
    assert [after[name] for name in ("checkpoint", "samples")] == [status[name] for name in ("checkpoint", "samples")]
    assert after["progress"]["step"] == status["progress"]["step"]
    sizes = {file["name"]: file["size"] for file in manifest(config)["files"]}
    assert sizes == {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json"}


def test_an_adapter_trained_on_4_bits_is_merged_into_16(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = trained(trainer_host, make_config(kind="qlora", precision="bf16"), tmp_path)
    done(trainer_host.run("merge", config, tmp_path / "merge"))
    assert_merged(config)


def test_an_adapter_trained_on_8_bits_is_merged_into_16(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = trained(trainer_host, make_config(kind="qlora", bits=8, precision="bf16"), tmp_path)
    done(trainer_host.run("merge", config, tmp_path / "merge"))
    assert_merged(config)


def test_a_dora_adapter_sets_the_length_of_every_row(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """By formula: the magnitude times the direction of the 16-bit base plus its delta."""
    config = trained(trainer_host, make_config(dora=True), tmp_path)
    done(trainer_host.run("merge", config, tmp_path / "merge"))
    base = load_file(Path(config.model.uri.removeprefix("file://")) / "model.safetensors")
    adapter = load_file(output(config) / "adapter" / "adapter_model.safetensors")
    settings = json.loads((output(config) / "adapter" / "adapter_config.json").read_text())
    assert settings["use_dora"]
    scale = settings["lora_alpha"] / settings["r"]
    merged = load_file(output(config) / "merged" / "model.safetensors")
    magnitudes = [name for name in adapter if ".lora_magnitude_vector" in name]
    assert len(magnitudes) == len(adapter) // 3
    for name in magnitudes:
        stem = name.partition(".lora_magnitude_vector")[0]
        delta = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"] * scale
        target = stem.removeprefix("base_model.model.") + ".weight"
        moved = base[target].bfloat16().float() + delta
        wanted = moved * (adapter[name] / moved.norm(dim=1)).unsqueeze(1)
        assert torch.allclose(merged[target].float(), wanted, rtol=2**-7, atol=1e-6), target
        assert not torch.equal(merged[target], base[target].bfloat16())


def test_the_base_is_left_as_it_was(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """Weights of a 16-bit file are mapped, not copied: merging must not write through to the file."""
    config = make_config()
    source, base = Path(config.model.uri.removeprefix("file://")), tmp_path / "base"
    shutil.copytree(source, base)
    tensors = {name: value.bfloat16() for name, value in load_file(source / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    before = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    config = config.model_copy(update={"model": config.model.model_copy(update={"uri": base.as_uri()})})
    trained(trainer_host, config, tmp_path)
    done(trainer_host.run("merge", config, tmp_path / "merge"))
    assert_merged(config)
    assert hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest() == before


def test_a_second_merge_finds_the_first(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    config = trained(trainer_host, make_config(), tmp_path)
    first = done(trainer_host.run("merge", config, tmp_path / "m1"))
    before = {path.name: path.stat().st_mtime_ns for path in (output(config) / "merged").iterdir()}
    second = done(trainer_host.run("merge", numbered(config, 2), tmp_path / "m2"))
    assert second.message == first.message
    assert second.events("libraries loaded") == []
    assert {path.name: path.stat().st_mtime_ns for path in (output(config) / "merged").iterdir()} == before
    assert second.status["artifacts"]["merged"] == (output(config) / "merged").as_uri()
    # Without a file that its manifest names it does not exist.
    (output(config) / "merged" / "model.safetensors").unlink()
    done(trainer_host.run("merge", numbered(config, 3), tmp_path / "m3"))
    assert_merged(config)


KILLED = """
import os, signal, sys
from gemmatune_trainer.backends import merger
from gemmatune_trainer.storage_file import FileStorage
merger.SHARD = "100KB"
plain, uploads = FileStorage.upload, []
def upload(self, files, new=False):
    plain(self, files, new)
    uploads.extend(files)
    if sum(name.endswith(".safetensors") for name in uploads) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
FileStorage.upload = upload
from gemmatune_trainer.__main__ import main
main(["merge"])
"""


@pytest.mark.slow
def test_killed_between_two_shards_the_next_merge_is_whole(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = trained(trainer_host, make_config(), tmp_path)
    env = {**os.environ, ENV_RUN: config.to_env(), ENV_TERMINATION_LOG: str(tmp_path / "end")}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=env, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    left = {path.name for path in (output(config) / "merged").iterdir()}
    assert len([name for name in left if name.startswith("model-")]) == 2
    assert "manifest.json" not in left
    done(trainer_host.run("merge", numbered(config, 2), tmp_path / "m2"))
    assert_merged(config)
    assert not list((output(config) / "merged").glob("model-*")), "nothing of the killed one is left"


@pytest.mark.slow
def test_the_command_loads_no_trainer(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    config = trained(trainer_host, make_config(), tmp_path)
    env = {**os.environ, ENV_RUN: config.to_env(), ENV_TERMINATION_LOG: str(tmp_path / "end")}
    command = [sys.executable, "-X", "importtime", "-m", "gemmatune_trainer", "merge"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == ExitCode.DONE, run.stderr[-3000:]
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "peft" in imported
    assert not imported & {"trl", "gemmatune_trainer.backends.torch"}


def test_into_a_bucket(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, fake_gcs: FakeGcs) -> None:
    config = make_config()
    out = config.output.model_copy(update={"uri": f"gs://{fake_gcs.new_bucket()}/run"})
    config = config.model_copy(update={"output": out})
    env = {ENV_GCS_ENDPOINT: fake_gcs.endpoint}
    trained(trainer_host, config, tmp_path, env)
    run = done(trainer_host.run("merge", config, tmp_path / "merge", env))
    assert run.message.manifest == f"{config.output.uri}/merged/manifest.json"
    assert run.status["artifacts"]["merged"] == f"{config.output.uri}/merged"


@pytest.fixture(scope="module")
def run_once(
    trainer_host: TrainerHost, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Path]:
    """A trained run, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    config = run_config(tiny_model("3"), write_quotes(folder / "quotes.jsonl"), folder / "out")
    return trained(trainer_host, config, folder), folder


@pytest.fixture
def copy(run_once: tuple[RunConfig, Path], tmp_path: Path) -> RunConfig:
    config, folder = run_once
    shutil.copytree(folder / "out", tmp_path / "out")
    out = config.output.model_copy(update={"uri": (tmp_path / "out").as_uri()})
    return config.model_copy(update={"output": out})


def refused(host: TrainerHost, config: RunConfig, folder: Path, code: ExitCode) -> TrainerProcess:
    run = host.run("merge", config, folder / "merge")
    assert run.poll() == code, run.log()
    assert not (output(config) / "merged" / "manifest.json").exists()
    return run


@pytest.mark.parametrize("damage", ["other bytes", "cut", "gone", "settings"])
def test_a_damaged_adapter(damage: str, copy: RunConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    file = output(copy) / "adapter" / ("adapter_config.json" if damage == "settings" else "adapter_model.safetensors")
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "settings":
        file.write_text(file.read_text().replace('"r": 4', '"r": 8'))
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    run = refused(trainer_host, copy, tmp_path, ExitCode.DATA_INVALID)
    assert file.name in run.message.message
    assert run.message.reason == Reason.DATA_INVALID
    assert "Restore" in run.message.remedy


def test_nothing_is_merged_before_the_run_has_finished(
    copy: RunConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    (output(copy) / "manifest.json").unlink()
    run = refused(trainer_host, copy, tmp_path, ExitCode.INVALID_CONFIG)
    assert "manifest.json" in run.message.message


def test_a_prefix_of_somebody_else(copy: RunConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    other = copy.model_copy(update={"run": copy.run.model_copy(update={"uid": "uid-2"})})
    refused(trainer_host, other, tmp_path, ExitCode.OUTPUT_IN_USE)


def test_an_older_merge_is_fenced_off(copy: RunConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    record = output(copy) / "attempts" / "merge-00002"
    record.write_text(json.dumps({"uid": copy.run.uid}))
    run = refused(trainer_host, copy, tmp_path, ExitCode.INTERRUPTED)
    assert "merge 2 has taken over from merge 1" in run.message.message
    again = refused(trainer_host, numbered(copy, 2), tmp_path / "again", ExitCode.INTERRUPTED)
    assert "another process runs or ran as merge 2" in again.message.message
    done(trainer_host.run("merge", numbered(copy, 3), tmp_path / "third"))


def test_a_changed_base_is_refused(copy: RunConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(copy.model.uri.removeprefix("file://"), base)
    record = json.loads((output(copy) / "run.json").read_text())
    changed = copy.model_copy(update={"model": copy.model.model_copy(update={"uri": base.as_uri()})})
    record["resumeHash"] = resume_hash(changed, record["modelRevision"], record["dataHash"])
    (output(copy) / "run.json").write_text(json.dumps(record))
    final = output(copy) / "manifest.json"
    final.write_text(json.dumps({**json.loads(final.read_text()), "resumeHash": record["resumeHash"]}))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    run = refused(trainer_host, changed, tmp_path, ExitCode.INVALID_CONFIG)
    assert "changed since the run was prepared" in run.message.message


class Listed:
    """Rows in memory."""

    def __init__(self, *rows: tuple[list[int], list[int]]) -> None:
        self._rows, self.rows = rows, len(rows)

    def row(self, index: int) -> tuple[list[int], list[int]]:
        return self._rows[index]


def test_the_rows_that_are_compared() -> None:
    row = (list(range(100)), list(range(100)))
    assert len(known_rows(Listed(*[row] * 9))) == 6, "until there are 512 tokens"  # type: ignore[arg-type]
    assert len(known_rows(Listed(row, row))) == 2  # type: ignore[arg-type]
    long = (list(range(5000)), [-100] * 4990 + list(range(10)))
    ((ids, labels),) = known_rows(Listed(long))  # type: ignore[arg-type]
    assert (len(ids), ids[-1], labels[-10:]) == (LONGEST_ROW, 4999, list(range(10))), "the end, where the answer is"
    early = (list(range(5000)), list(range(10)) + [-100] * 4990)
    ((ids, labels),) = known_rows(Listed(early))  # type: ignore[arg-type]
    assert labels == ids, "never nothing to compare"


def test_generation_ends_at_both_terminators(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("3"))
    for given, wanted in (([1], 1), ([1, 106], [1, 106]), ([1], [1, 106])):
        set_terminators(model, given)
        model.save_pretrained(tmp_path)
        assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == wanted
