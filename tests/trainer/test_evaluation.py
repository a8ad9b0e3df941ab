"""Rows kept for evaluation: which they are, what is found on them, and that the best adapter is the result."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.names import ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.data import prepared
from gemmatune_trainer.evaluation import Evaluation
from gemmatune_trainer.history import Evaluated, History
from gemmatune_trainer.storage import open_storage
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.support.wait import wait_for
from tests.trainer.conftest import ListedRows, write_quotes
from tests.trainer.test_torch_backend import LENGTHS, Watcher, largest_difference, make_backend, weights

MakeConfig = Callable[..., RunConfig]
ADAPTER = "adapter_model.safetensors"


def run(host: TrainerHost, role: str, config: RunConfig, folder: Path) -> TrainerProcess:
    done = host.run(role, config, folder)
    assert done.poll() == ExitCode.DONE, done.log()
    return done


def into(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": folder.as_uri()})})


def test_rows_kept_by_share_are_not_trained(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    whole = make_config()
    config = make_config(eval_fraction=0.2)
    rows = {}
    for name, one in (("whole", whole), ("split", config)):
        one = into(one, tmp_path / name)
        done = run(trainer_host, "prepare", one, tmp_path / f"{name}-prepare")
        found = from_text((done.folder / "termination").read_text(), PrepareResult)
        assert found is not None
        assert found.data is not None
        rows[name] = prepared.load(open_storage(one.output.uri), one.output.uri, found.data.hash, tmp_path / "cache")
        if name == "split":
            assert (found.data.rows, found.data.eval_rows) == (19, 5)
            assert "5 rows are kept for evaluation" in found.message
    assert rows["whole"].evaluation is None
    held = rows["split"].evaluation
    assert held is not None
    trained = [rows["split"].row(index) for index in range(19)]
    kept = [held.row(index) for index in range(5)]
    everything = [rows["whole"].row(index) for index in range(24)]
    assert sorted(trained + kept) == sorted(everything)
    assert [row for row in everything if row in trained] == trained, "in their order"


def test_rows_for_evaluation_from_a_file_of_their_own(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """All rows of both are used, `limit` is for the rows to train on, and another file is another run."""
    own = write_quotes(tmp_path / "own.jsonl", rows=7)
    config = make_config(eval_uri=own.as_uri(), limit=20)
    done = run(trainer_host, "prepare", config, tmp_path / "prepare")
    found = from_text((done.folder / "termination").read_text(), PrepareResult)
    assert found is not None
    assert found.data is not None
    assert (found.data.rows, found.data.eval_rows) == (20, 7)
    write_quotes(own, rows=8)
    again = trainer_host.run("prepare", config, tmp_path / "again")
    assert again.poll() == ExitCode.DONE, again.log()
    changed = from_text((again.folder / "termination").read_text(), PrepareResult)
    assert changed is not None
    assert changed.data is not None
    assert changed.data.hash != found.data.hash


@pytest.mark.parametrize("changes", [{}, {"packing": False}, {"kind": "qlora", "precision": "bf16"}])
def test_the_loss_is_that_of_each_row_alone(make_config: MakeConfig, changes: dict[str, Any]) -> None:
    config = make_config(micro_batch_size=3, dropout=0.1, **changes)
    backend = make_backend(config)
    rows = ListedRows(LENGTHS, masked=2)
    seen: list[None] = []
    total, labelled = backend.evaluate(rows, len(LENGTHS), lambda: seen.append(None))
    assert len(seen) == 4
    expected = 0.0
    for index in range(len(LENGTHS)):
        ids, labels = rows.row(index)
        logits = backend._logits(ids)[0, :-1]
        expected += float(functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum"))
    assert labelled == sum(LENGTHS) - 2 * len(LENGTHS)
    assert total == pytest.approx(expected, rel=1e-5 if config.training.precision == "fp32" else 1e-2)


def test_evaluation_changes_nothing_that_is_trained(make_config: MakeConfig) -> None:
    """QLoRA with dropout: the same bits with an evaluation after every step and without."""
    config = make_config(kind="qlora", precision="bf16", dropout=0.1)
    rows = ListedRows(LENGTHS)
    plain = make_backend(config)
    plain.train(rows, len(LENGTHS), 3, None, Watcher())
    evaluated = make_backend(config)

    def evaluate(step: int) -> None:
        evaluated.evaluate(rows, 4, lambda: None)

    evaluated.evaluate(rows, 4, lambda: None)
    evaluated.train(rows, len(LENGTHS), 3, None, Watcher(evaluate))
    assert largest_difference(weights(plain), weights(evaluated)) == 0


@pytest.mark.parametrize(("every_steps", "eval_every_steps", "total"), [(None, None, 4), (50, None, 4), (2, 3, 4)])
def test_an_evaluation_of_the_last_step_that_was_broken_off_is_made(
    make_config: MakeConfig,
    tmp_path: Path,
    every_steps: int | None,
    eval_every_steps: int | None,
    total: int,
) -> None:
    """An attempt that resumes at the last step has no other chance; what is due by time alone has the next one."""
    config = make_config(every_steps=every_steps, eval_every_steps=eval_every_steps)
    evaluation = Evaluation(config, make_backend(config), ListedRows(LENGTHS), tmp_path)  # type: ignore[arg-type]
    history = History(1)
    assert evaluation.due(total, with_checkpoint=True, last=True)
    assert evaluation.missed(total, total, history)
    assert evaluation.missed(0, total, history)
    assert not evaluation.missed(1, total, history)
    history.evaluations.append(Evaluated(total, 1.0))
    assert not evaluation.missed(total, total, history)


def test_stopped_amid_the_last_evaluation(make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path) -> None:
    """The next attempt has no step to do, and still says what the result is worth, and chooses the best one."""
    many = write_quotes(tmp_path / "many.jsonl", rows=400)
    config = make_config(
        eval_uri=many.as_uri(), max_steps=5, every_steps=2, micro_batch_size=1, best=True, learning_rate=1e-3
    )
    run(trainer_host, "prepare", config, tmp_path / "prepare")
    first = trainer_host.start("train", config, tmp_path / "first")
    wait_for(lambda: len(first.events("step")) == 5, "the last step", seconds=240, interval=0.01, detail=first.log)
    first.signal(signal.SIGTERM)
    assert first.wait() == ExitCode.INTERRUPTED, first.log()
    assert [line["step"] for line in first.events("evaluation")] == [0, 2, 4]
    second = run(trainer_host, "train", config.model_copy(update={"attempt": 2}), tmp_path / "second")
    assert second.events("training")[0]["from_step"] == 5
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    losses = {item["step"]: item["loss"] for item in manifest["evaluations"]}
    assert sorted(losses) == [0, 2, 4, 5]
    assert manifest["step"] == min((2, 4, 5), key=lambda step: losses[step])


def write_others(path: Path) -> str:
    """Rows that have nothing in common with those that are trained: what is learnt only makes them less likely."""
    rows = [{"text": "<b>7 % 4 & 9 _ 3 { 8 } 5 ~ 6 = 2", "from": f"{number} + {number}"} for number in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.as_uri()


def test_the_best_adapter_is_the_result_also_after_an_interruption(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    config = make_config(
        eval_uri=write_others(tmp_path / "others.jsonl"),
        eval_every_steps=2,
        best=True,
        max_steps=24,
        every_steps=4,
        learning_rate=2e-2,
        from_eval=2,
        micro_batch_size=1,
    )
    undisturbed = config.model_copy(
        update={"output": config.output.model_copy(update={"uri": (tmp_path / "u").as_uri()})}
    )
    run(trainer_host, "prepare", undisturbed, tmp_path / "u-prepare")
    whole = run(trainer_host, "train", undisturbed, tmp_path / "u-train")
    manifest = json.loads((tmp_path / "u" / "manifest.json").read_text())
    losses = {item["step"]: item["loss"] for item in manifest["evaluations"]}
    assert sorted(losses) == list(range(0, 25, 2))
    best = min((step for step in losses if step), key=lambda step: losses[step])
    assert manifest["step"] == best < 24, losses
    assert whole.status["progress"]["evalLoss"] == pytest.approx(losses[24], rel=1e-3)
    assert f"(step {best})" in whole.message.message
    assert "Evaluation loss" in (tmp_path / "u" / "report" / "report.html").read_text()
    samples = whole.status["samples"]
    assert len(samples) == 3
    assert samples[1]["prompt"].startswith("Quote: <b>7")
    page = (tmp_path / "u" / "report" / "report.html").read_text()
    assert "Quote: &lt;b&gt;7" in page, "what a row holds is text"
    assert "<b>7" not in page
    # The same run, stopped where a checkpoint has the best adapter behind it.
    run(trainer_host, "prepare", config, tmp_path / "prepare")
    first = trainer_host.start("train", config, tmp_path / "first")
    wait_for(lambda: len(first.events("step")) > best, "the best step", seconds=240, detail=first.log)
    first.signal(signal.SIGTERM)
    code = first.wait()
    if code != ExitCode.DONE:  # it may have been through already
        assert code == ExitCode.INTERRUPTED, first.log()
        second = config.model_copy(update={"attempt": 2})
        run(trainer_host, "train", second, tmp_path / "second")
    resumed = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert resumed["evaluations"] == manifest["evaluations"]
    assert resumed["step"] == best
    one, other = (load_file(tmp_path / name / "adapter" / ADAPTER) for name in ("u", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_last_adapter_is_the_result_where_the_best_is_not_asked_for(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """And evaluation then comes with each checkpoint."""
    config = make_config(eval_uri=write_others(tmp_path / "others.jsonl"), max_steps=10, every_steps=4)
    run(trainer_host, "prepare", config, tmp_path / "prepare")
    done = run(trainer_host, "train", config, tmp_path / "train")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [item["step"] for item in manifest["evaluations"]] == [0, 4, 8, 10]
    assert manifest["step"] == 10
    base, last = manifest["evaluations"][0]["loss"], manifest["evaluations"][-1]["loss"]
    assert ("did not fall" in done.message.message) == bool(done.message.remedy) == (last >= base)
    told = [line["warning"] for line in done.events("the adapter is verified, but")]
    assert manifest["warnings"] == told
    assert bool(told) == (last >= base)
