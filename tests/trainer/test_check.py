"""The check of a pod's access: each place that the preparation reads on its own, that of the held-out rows too."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmatune_api.names import ENV_CACHE
from gemmatune_trainer.check import check
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.stop import StopFlag
from tests.support.standin import write_small_model
from tests.trainer.conftest import run_config, write_quotes


def test_the_rows_for_evaluation_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    write_small_model(tmp_path / "model", "2")
    data, held_out = write_quotes(tmp_path / "quotes.jsonl"), tmp_path / "held-out.jsonl"
    config = run_config(tmp_path / "model", data, tmp_path / "out", eval_uri=held_out.as_uri())
    with pytest.raises(InvalidConfig) as caught:
        check(config, StopFlag())
    *before, last = caught.value.message.splitlines()
    assert [line.rpartition(" can be ")[2] for line in before] == ["written", "read", "read"]
    assert last.startswith("InvalidConfig: ")
    assert str(held_out) in last
    write_quotes(held_out)
    assert check(config, StopFlag()).message.splitlines()[-1] == f"{held_out.as_uri()} can be read for evaluation"
    without = config.model_copy(update={"dataset": config.dataset.model_copy(update={"eval_uri": None})})
    assert len(check(without, StopFlag()).message.splitlines()) == 3
