"""The floating-point work of a step against what no trainer can do without: a figure that holds on any hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import flops
from bench.trainer_verdict import WORK, necessary
from gemmatune_api import catalog
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.forward import labelled_loss
from gemmatune_trainer.backends.torch import TorchBackend
from gemmatune_trainer.backends.torch_trainer import StepLoader
from gemmatune_trainer.models import fetch
from gemmatune_trainer.stop import StopFlag
from tests.trainer.conftest import ListedRows

LEAST = 0.97
"""Below this share of the necessary, work was left out of the count."""
LENGTHS = [30, 57, 41, 12, 49, 23, 44, 60]


@pytest.mark.parametrize(("generation", "changes"), [("1", {}), ("2", {}), ("3", {}), ("3", {"dropout": 0.1})])
def test_a_step_does_little_more_than_the_necessary(
    make_config: Callable[..., RunConfig], generation: str, changes: dict[str, Any]
) -> None:
    """Rows of different lengths, of which half is labelled, in one micro-batch without checkpointing."""
    config = make_config(generation, micro_batch_size=8, global_batch_size=8, **changes)
    files = fetch(config.model, weights=True)
    backend = TorchBackend(config, files, StopFlag())
    backend.load()
    rows = ListedRows(LENGTHS, masked=6)
    (batch,) = StepLoader(config, rows, len(LENGTHS), 1, 0, 0)
    backend._model.train()
    with flops.Uncounted() as uncounted, flops.counter() as counter:
        labelled_loss(backend._model, batch["input_ids"], batch["position_ids"], batch["labels"]).backward()
    found = catalog.by_config(files.config)
    assert found is not None
    shape = {
        "non_embedding": found.parameters - found.embedding,
        "embedding": found.embedding,
        "adapter": sum(value.numel() for value in backend._model.parameters() if value.requires_grad),
        "attention_width": found.heads * found.head_dim,
        "layers": found.layers,
    }
    documents = [[ids, [-100, *labels[1:]]] for ids, labels in rows.items]
    share = counter.get_total_flops() / necessary(documents, shape)
    assert not uncounted.found
    assert LEAST <= share <= WORK


def test_products_in_place_are_counted() -> None:
    """torch's own counter takes them for nothing."""
    one, other, into = torch.ones(3, 5), torch.ones(5, 7), torch.zeros(3, 7)
    batches = torch.ones(2, 3, 5), torch.ones(2, 5, 7), torch.zeros(2, 3, 7)
    with flops.Uncounted() as uncounted, flops.counter() as counter:
        into.addmm_(one, other, alpha=2.0)
        torch.addmm(into, one, other)
        batches[2].baddbmm_(*batches[:2])
    assert counter.get_total_flops() == 2 * (2 * 3 * 5 * 7) + 2 * (2 * 3 * 5 * 7)
    assert not uncounted.found
    with flops.Uncounted() as uncounted:
        torch.ones(5).addmv_(torch.ones(5, 5), torch.ones(5))
    assert uncounted.found == {"aten.addmv_"}
