"""What a run of backend xla begins with: the models that it trains, the precision of its products, and its chips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch_xla.backends

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import backends
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.models import fetch
from gemmatune_trainer.prepare import prepare
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag
from tests.support.standin import write_small_model
from tests.trainer.conftest import write_quotes
from tests.xla.test_hosts import start

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize(("tokens_of", "model_type"), [("3", "gemma3n_text"), ("4", "gemma4_text")])
def test_a_run_that_moves_here_with_another_model_is_refused(
    make_config: MakeConfig, tmp_path: Path, tokens_of: str, model_type: str
) -> None:
    """Prepare asked of the backend that began the run."""
    write_small_model(tmp_path / "model", tokens_of, model_type=model_type, intermediate_size=[128, 128])
    config = make_config()
    model = config.model.model_copy(update={"uri": (tmp_path / "model").as_uri()})
    backend = backends.make(config, fetch(model, weights=False), StopFlag(), Ranks())
    with pytest.raises(InvalidConfig, match=f"^model.uri: backend xla does not train models of type {model_type}$"):
        backend.load()


def test_products_of_a_run_in_fp32_are_in_fp32(make_config: MakeConfig) -> None:
    """A TPU would make them in bf16."""
    for precision, option in (("bf16", "default"), ("fp32", "highest"), ("bf16", "default")):
        config = make_config("2", precision=precision)
        backends.make(config, fetch(config.model, weights=True), StopFlag(), Ranks())
        assert torch_xla.backends.get_mat_mul_precision() == option


def test_a_tpu_that_does_not_start_is_a_fault_of_the_node(make_config: MakeConfig, tmp_path: Path) -> None:
    """The pod's environment names the TPU; the attempt ends as a crash, which the operator tries again and counts."""
    write_quotes(tmp_path / "rows.jsonl")
    config = make_config()
    prepare(config, StopFlag())
    trained = start("train", config.model_copy(update={"device": "tpu"}), tmp_path / "train", PJRT_DEVICE="TPU")
    _, log = trained.communicate()
    assert trained.returncode == ExitCode.CRASHED, log[-4000:]
    message = from_text((tmp_path / "train" / "termination").read_text(), TerminationMessage)
    assert message is not None
    assert message.message.startswith("the node's TPU does not start: ")
    assert "look at the node's device plugin" in message.remedy
