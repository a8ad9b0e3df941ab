"""Whole runs as processes, on a tiny model: the end of each, and what is left in the output."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.names import ENV_GCS_ENDPOINT, ENV_RUN, ENV_TERMINATION_LOG, ExitCode, Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_cli.main import app
from tests.support.fakegcs import FakeGcs
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.support.wait import wait_for

MakeConfig = Callable[..., RunConfig]


def output(config: RunConfig) -> Path:
    return Path(config.output.uri.removeprefix("file://"))


def at(config: RunConfig, folder: Path, **run: Any) -> RunConfig:
    """The same run into another output, or as another attempt or resource."""
    updates: dict[str, Any] = {"output": config.output.model_copy(update={"uri": folder.as_uri()})}
    if "attempt" in run:
        updates["attempt"] = run.pop("attempt")
    if run:
        updates["run"] = config.run.model_copy(update=run)
    return config.model_copy(update=updates)


def attempt(config: RunConfig, number: int) -> RunConfig:
    return config.model_copy(update={"attempt": number})


def steps_done(run: TrainerProcess) -> int:
    return len(run.events("step"))


def weights(config: RunConfig) -> dict[str, Any]:
    return load_file(output(config) / "adapter" / "adapter_model.safetensors")


def assert_equal_adapters(one: RunConfig, other: RunConfig) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def prepared(host: TrainerHost, config: RunConfig, folder: Path) -> RunConfig:
    run = host.run("prepare", config, folder / "prepare")
    assert run.poll() == ExitCode.DONE, run.log()
    return config


def test_prepare_and_train_by_their_command(make_config: MakeConfig, tmp_path: Path) -> None:
    """The real command, twice: a whole run, and one more attempt that finds it finished."""
    config = make_config()
    codes = {}
    for name, role, config_ in (
        ("prepare", "prepare", config), ("first", "train", config), ("second", "train", attempt(config, 2))
    ):  # fmt: skip
        env = {**os.environ, ENV_RUN: config_.to_env(), ENV_TERMINATION_LOG: str(tmp_path / name)}
        command = [sys.executable, "-X", "importtime", "-m", "gemmatune_trainer", role]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        codes[name] = done.returncode
        assert done.returncode == ExitCode.DONE, done.stderr[-3000:]
        # What fails early must not wait for torch.
        assert bool(re.search(r"\| +torch$", done.stderr, re.MULTILINE)) == (name == "first")
    made = from_text((tmp_path / "prepare").read_text(), PrepareResult)
    assert made is not None
    assert made.data is not None
    assert made.data.rows == 24
    for name in ("first", "second"):
        message = json.loads((tmp_path / name).read_text())
        assert message["reason"] == Reason.COMPLETED
        assert message["step"] == 4
        assert message["manifest"] == (output(config) / "manifest.json").as_uri()
    assert not (output(config) / "attempts" / "00002").exists()


def test_what_a_run_leaves(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    config = prepared(trainer_host, make_config(), tmp_path)
    run = trainer_host.run("train", config, tmp_path / "train")
    assert run.poll() == ExitCode.DONE, run.log()
    out = output(config)
    manifest = json.loads((out / "manifest.json").read_text())
    digest = hashlib.sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert manifest["artifacts"]["sha256"] == digest
    assert {entry["name"] for entry in manifest["adapter"]} == {
        f"adapter/{path.name}" for path in (out / "adapter").iterdir()
    }
    assert {path.name for path in (out / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    status = run.status
    assert status["progress"]["stepText"] == "4/4"
    assert status["progress"]["historySteps"] == [1, 2, 3, 4]
    assert all(0 < loss < 20 for loss in status["progress"]["historyLoss"])
    assert status["checkpoint"] == {"step": 4, "uri": (out / "checkpoints" / "step-00000004").as_uri()}
    assert status["artifacts"]["sha256"] == digest
    (sample,) = status["samples"]
    assert sample["prompt"] == "Quote: Hello"
    assert sample.keys() == {"prompt", "before", "after"}
    page = (out / "report" / "report.html").read_text()
    assert not re.search(r"(src|href)=|@import|url\(", page), "the report must open offline"
    assert page.count("<svg") == 5, "loss, learning rate, speed, gradient norm, memory"
    card = (out / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert_loads_in_plain_peft(Path(config.model.uri.removeprefix("file://")), out / "adapter", config.model.uri)
    assert_gft_shows(out, manifest)
    leftovers = [path for path in (tmp_path / "cache" / "runs").rglob("*") if path.is_file()]
    assert not leftovers


def assert_loads_in_plain_peft(base: Path, adapter: Path, named: str) -> None:
    """As its users load it: PEFT and transformers alone, by the files of the adapter's folder."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    assert PeftConfig.from_pretrained(adapter).base_model_name_or_path == named
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    settings = GenerationConfig.from_pretrained(adapter)
    assert settings.eos_token_id == [1, 106]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        tuned = model(**inputs).logits
        with model.disable_adapter():
            plain = model(**inputs).logits
    assert float((tuned - plain).abs().max()) > 0
    assert (
        model.generate(**inputs, generation_config=settings, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
    )


def assert_gft_shows(out: Path, manifest: dict[str, Any]) -> None:
    """What `gft` says of the output of a real run."""

    def gft(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    assert gft("serve-command", str(out)).strip() == manifest["artifacts"]["serveCommand"]
    assert "AutoPeftModelForCausalLM" in gft("serve-command", str(out), "--with", "transformers")
    assert gft("report", out.as_uri()).strip() == str(out / "report/report.html")
    (sample,) = json.loads(gft("samples", str(out), "--json"))
    assert sample == manifest["samples"][0]
    table = " ".join(gft("compare", str(out), out.as_uri()).split())
    assert "training.learningRate" not in table, "nothing differs"
    assert "LoRA, rank 4, alpha 8 LoRA, rank 4, alpha 8" in table
    assert manifest["tokensPerSecond"] > 0
    assert manifest["memory"] > 2**20
    assert manifest["settings"]["lora.rank"] == "4"


def test_sigterm_saves_a_checkpoint_and_the_next_attempt_is_bit_equal(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """Without a checkpoint interval that would have saved one anyway."""
    config = make_config(max_steps=80, every_steps=1000, dropout=0.1, micro_batch_size=1)
    undisturbed = prepared(trainer_host, at(config, tmp_path / "undisturbed"), tmp_path / "u")
    whole = trainer_host.run("train", undisturbed, tmp_path / "whole")
    assert whole.poll() == ExitCode.DONE, whole.log()
    prepared(trainer_host, config, tmp_path)
    stopped = trainer_host.start("train", config, tmp_path / "first")
    wait_for(lambda: steps_done(stopped) >= 5, "five steps", seconds=180, detail=stopped.log)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == ExitCode.INTERRUPTED, stopped.log()
    assert stopped.message.reason == Reason.INTERRUPTED
    reached = stopped.message.step
    assert reached is not None
    assert 5 <= reached < 80
    assert stopped.status["checkpoint"]["step"] == reached
    assert not (output(config) / "manifest.json").exists()
    resumed = trainer_host.run("train", attempt(config, 2), tmp_path / "second")
    assert resumed.poll() == ExitCode.DONE, resumed.log()
    assert resumed.events("training")[0]["from_step"] == reached
    assert len(resumed.events("step")) == 80 - reached
    assert_equal_adapters(undisturbed, config)
    assert resumed.status["samples"][0]["before"] == whole.status["samples"][0]["before"]
    assert resumed.status["progress"]["historyLoss"] == whole.status["progress"]["historyLoss"]


def test_sigkill_at_any_moment_loses_no_bit(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """Killed again and again, at random moments after a random step, until an attempt gets through."""
    config = make_config(max_steps=60, every_steps=7, dropout=0.1)
    undisturbed = prepared(trainer_host, at(config, tmp_path / "undisturbed"), tmp_path / "u")
    assert trainer_host.run("train", undisturbed, tmp_path / "whole").poll() == ExitCode.DONE
    prepared(trainer_host, config, tmp_path)
    chance = random.Random(os.urandom(8).hex())
    kills = [chance.randint(1, 30), chance.randint(1, 10)]
    reached = 0
    for number, steps in enumerate(kills, start=1):
        run = trainer_host.start("train", attempt(config, number), tmp_path / str(number))
        wait_for(
            lambda run=run, steps=steps: steps_done(run) >= steps or run.poll() is not None,
            f"{steps} steps",
            seconds=180,
        )
        run.signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, (kills, run.log())
        begun = run.events("training")[0]["from_step"]
        assert begun % 7 == 0, kills
        # At most one interval and the steps during one upload are lost, at most two intervals.
        assert begun >= reached - 14, kills
        reached = begun + steps_done(run)
    last = trainer_host.run("train", attempt(config, 3), tmp_path / "3")
    assert last.poll() == ExitCode.DONE, (kills, last.log())
    assert_equal_adapters(undisturbed, config)


def test_a_zombie_attempt_writes_nothing(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """An attempt on a lost node that comes back after its successor has finished."""
    config = prepared(trainer_host, make_config(max_steps=40, every_steps=5), tmp_path)
    zombie = trainer_host.start("train", config, tmp_path / "zombie")
    wait_for(lambda: steps_done(zombie) >= 6, "six steps", seconds=180, detail=zombie.log)
    zombie.signal(signal.SIGSTOP)
    heir = trainer_host.run("train", attempt(config, 2), tmp_path / "heir")
    assert heir.poll() == ExitCode.DONE, heir.log()
    before = {path: path.read_bytes() for path in output(config).rglob("manifest.json")}
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == ExitCode.INTERRUPTED, zombie.log()
    assert "attempt 2 has taken over" in zombie.message.message
    assert {path: path.read_bytes() for path in output(config).rglob("manifest.json")} == before


def test_a_damaged_checkpoint_is_passed_over(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = prepared(trainer_host, make_config(max_steps=60, every_steps=5, keep=3), tmp_path)
    run = trainer_host.start("train", config, tmp_path / "first")
    wait_for(lambda: steps_done(run) >= 16, "16 steps", seconds=180, detail=run.log)
    run.signal(signal.SIGKILL)
    run.wait()
    folders = sorted(path.parent for path in (output(config) / "checkpoints").glob("*/manifest.json"))
    assert len(folders) >= 2
    newest = folders[-1] / "optimizer.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    second = trainer_host.run("train", attempt(config, 2), tmp_path / "second")
    assert second.poll() == ExitCode.DONE, second.log()
    (passed,) = second.events("checkpoint passed over")
    assert "optimizer.pt has CRC32C" in passed["fault"]
    assert second.events("training")[0]["from_step"] == int(folders[-2].name.removeprefix("step-"))


def test_two_resources_with_one_output(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """Both live: the second is refused. The first gone: an equal run takes over, another one is refused."""
    config = prepared(trainer_host, make_config(max_steps=60), tmp_path)
    first = trainer_host.start("train", config, tmp_path / "first")
    wait_for(lambda: steps_done(first) >= 3, "three steps", seconds=180, detail=first.log)
    heir = config.model_copy(update={"run": config.run.model_copy(update={"uid": "uid-2"})})
    refused = trainer_host.run("prepare", heir, tmp_path / "refused")
    assert refused.poll() == ExitCode.OUTPUT_IN_USE
    assert "still there" in refused.message.message
    first.signal(signal.SIGKILL)
    first.wait()
    training = config.training.model_copy(update={"learning_rate": 1e-3})
    other = heir.model_copy(update={"training": training})
    differs = trainer_host.run("prepare", other, tmp_path / "differs")
    assert differs.poll() == ExitCode.OUTPUT_IN_USE
    assert "overwrite" in differs.message.remedy
    prepared(trainer_host, heir, tmp_path / "heir")
    taken = trainer_host.run("train", heir, tmp_path / "taken")
    assert taken.poll() == ExitCode.DONE, taken.log()
    assert taken.events("training")[0]["from_step"] >= 2
    late = trainer_host.run("train", attempt(config, 2), tmp_path / "late")
    assert late.poll() == ExitCode.OUTPUT_IN_USE, late.log()


def test_a_run_in_a_bucket(
    make_config: MakeConfig, trainer_host: TrainerHost, fake_gcs: FakeGcs, tmp_path: Path
) -> None:
    """Model, data and output on gs://: stopped, resumed, finished."""
    bucket = fake_gcs.new_bucket()
    config = make_config(max_steps=60, every_steps=10)
    client = fake_gcs.client().bucket(bucket)
    for path in Path(config.model.uri.removeprefix("file://")).iterdir():
        client.blob(f"models/tiny/{path.name}").upload_from_filename(str(path))
    client.blob("data/quotes.jsonl").upload_from_filename(config.dataset.uri.removeprefix("file://"))
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"uri": f"gs://{bucket}/models/tiny"}),
            "dataset": config.dataset.model_copy(update={"uri": f"gs://{bucket}/data/quotes.jsonl"}),
            "output": config.output.model_copy(update={"uri": f"gs://{bucket}/runs/quotes"}),
        }
    )
    env = {ENV_GCS_ENDPOINT: fake_gcs.endpoint}
    assert trainer_host.run("prepare", config, tmp_path / "prepare", env).poll() == ExitCode.DONE
    first = trainer_host.start("train", config, tmp_path / "first", env)
    wait_for(lambda: steps_done(first) >= 12, "12 steps", seconds=180, detail=first.log)
    first.signal(signal.SIGINT)
    assert first.wait() == ExitCode.INTERRUPTED, first.log()
    second = trainer_host.run("train", attempt(config, 2), tmp_path / "second", env)
    assert second.poll() == ExitCode.DONE, second.log()
    names = {name.removeprefix("runs/quotes/") for name in fake_gcs.names(bucket, "runs/")}
    assert {"run.json", "attempts/00001", "attempts/00002", "manifest.json", "report/report.html"} <= names
    assert "adapter/adapter_model.safetensors" in names
    kept = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
    assert kept == {"step-00000060", max(kept - {"step-00000060"})}
    assert second.message.manifest == f"gs://{bucket}/runs/quotes/manifest.json"


def test_a_loss_that_is_no_number_ends_the_run(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """The weights of the base are damaged, as after a bad conversion."""
    config = make_config()
    folder = tmp_path / "damaged"
    shutil.copytree(config.model.uri.removeprefix("file://"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = config.model_copy(update={"model": config.model.model_copy(update={"uri": folder.as_uri()})})
    prepared(trainer_host, config, tmp_path)
    run = trainer_host.run("train", config, tmp_path / "train")
    assert run.poll() == ExitCode.LOSS_DIVERGED, run.log()
    assert run.message.reason == Reason.LOSS_DIVERGED
    assert run.message.step == 1
    assert "the loss is nan" in run.message.message
    assert "learningRate" in run.message.remedy
    assert not (output(config) / "manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("no json", "no JSON"), ('{"version": 99}', "version 99"), ('{"version": 1}', "cannot be read"), ("", "not set")],
)
def test_a_configuration_that_cannot_be_read(trainer_host: TrainerHost, tmp_path: Path, text: str, words: str) -> None:
    run = trainer_host.run("train", text, tmp_path / "run")
    assert run.poll() == ExitCode.INVALID_CONFIG
    assert words in run.message.message


@pytest.mark.parametrize("backend", ["xla", "keras"])
def test_a_backend_that_the_image_does_not_have(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, backend: str
) -> None:
    config = prepared(trainer_host, make_config(), tmp_path).model_copy(update={"backend": backend})
    run = trainer_host.run("train", config, tmp_path / "run")
    assert run.poll() == ExitCode.INVALID_CONFIG
    assert run.message.message == (
        f"the run asks for backend {backend}, whose libraries are not installed here (those of torch are)"
    )
    assert f"`make setup-{backend}`" in run.message.remedy
    assert not (output(config) / "attempts").exists()


def test_training_before_preparing(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    run = trainer_host.run("train", make_config(), tmp_path / "run")
    assert run.poll() == ExitCode.INVALID_CONFIG
    assert "has not been prepared" in run.message.message


def test_settings_that_differ_from_the_prepared_ones(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = prepared(trainer_host, make_config(), tmp_path)
    changed = config.model_copy(update={"method": config.method.model_copy(update={"rank": 2})})
    run = trainer_host.run("train", changed, tmp_path / "run")
    assert run.poll() == ExitCode.INVALID_CONFIG
    assert "differ" in run.message.message
