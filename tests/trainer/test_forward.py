"""The packed forward pass and the loss at labelled positions, against transformers' own way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from gemmatune_api import catalog
from gemmatune_trainer.backends import forward
from gemmatune_trainer.backends.parallel import layers_of
from gemmatune_trainer.data.pack import collate, pack
from tests.support import tinytorch
from tests.trainer.conftest import GENERATIONS, SLIDING_WINDOW, ListedRows

TinyModel = Callable[[str], Path]


ALL = (*GENERATIONS, *tinytorch.KINDS)


def load(folder: Path, attention: str) -> Any:
    found = catalog.by_config(json.loads((folder / "config.json").read_text()))
    assert found is not None
    model = getattr(transformers, found.model_class).from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32
    )
    return model.eval()


def tensors(rows: list[Any], sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = collate(rows, sequences, pad_id=0)
    return (*map(torch.from_numpy, (batch.input_ids, batch.position_ids, batch.labels)),)  # type: ignore[return-value]


@pytest.mark.parametrize("generation", ALL)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(tiny_model: TinyModel, generation: str, attention: str) -> None:
    """Also a document longer than the sliding window, and padding at the end."""
    if generation == "2" and attention == "sdpa":
        pytest.skip("SDPA drops Gemma 2's soft-capping; the catalog says eager")
    model = load(tiny_model(generation), attention)
    rows = ListedRows([5, 3 * SLIDING_WINDOW, 9, 30]).items
    sequences = pack([len(ids) for ids, _ in rows], 64)
    assert len(sequences) > 1
    ids, positions, _ = tensors(rows, sequences)
    with torch.no_grad():
        packed = forward.packed_logits(model, ids, positions)
        for index, sequence in enumerate(sequences):
            end = 0
            for row in sequence:
                begin, end = end, end + len(rows[row][0])
                alone = model(input_ids=torch.tensor([rows[row][0]]), use_cache=False).logits[0]
                torch.testing.assert_close(packed[index, begin:end], alone, rtol=1e-4, atol=1e-4)


def test_an_attention_mask_would_let_documents_see_each_other(tiny_model: TinyModel) -> None:
    """What the one packed forward pass guards against is real: with a mask of ones the logits are others."""
    model = load(tiny_model("3"), "sdpa")
    ids, positions, _ = tensors(ListedRows([12, 20]).items, [[0, 1]])
    with torch.no_grad():
        right = forward.packed_logits(model, ids, positions)
        wrong = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    assert (right - wrong).abs().max() > 0.1


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("rows", [3, 700])
def test_head_loss_equals_cross_entropy(cap: float | None, rows: int) -> None:
    """Value and gradient, with and without soft-capping, in one chunk and in several."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, 16, generator=generator, dtype=torch.float64).float().requires_grad_()
    head = torch.randn(50, 16, generator=generator)
    targets = torch.randint(0, 50, (rows,), generator=generator)
    loss = forward._HeadLoss.apply(hidden, targets, head, cap)
    (loss / 7).backward()
    ours = hidden.grad
    hidden.grad = None
    logits = hidden @ head.T
    logits = torch.tanh(logits / cap) * cap if cap else logits
    plain = functional.cross_entropy(logits, targets, reduction="sum")
    (plain / 7).backward()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("generation", ALL)
def test_labelled_loss_equals_the_models_own(tiny_model: TinyModel, generation: str) -> None:
    """Sum over the labelled tokens of single rows by transformers = our loss of the packed rows; gradients too."""
    model = load(tiny_model(generation), catalog.rules(tinytorch.generation_of(generation)).attention)
    assert (forward.soft_cap(model) is not None) == (generation in ("2", "3n", "4", "4-images"))
    rows = ListedRows([7, 24, 40], masked=3).items
    ids, positions, labels = tensors(rows, [[0, 1], [2]])
    embedding = model.get_input_embeddings().weight
    model.requires_grad_(False)
    probe = layers_of(model)[0].self_attn.q_proj.weight.requires_grad_()
    ours = forward.labelled_loss(model, ids, positions, labels)
    (gradient,) = torch.autograd.grad(ours, probe)
    plain = torch.zeros(())
    for row, row_labels in rows:
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1]
        target = torch.tensor(row_labels[1:])
        plain = plain + functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
    (expected,) = torch.autograd.grad(plain, probe)
    assert embedding.grad is None
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_first_token_of_a_document_is_not_trained() -> None:
    batch = collate(ListedRows([4, 6]).items, [[0, 1]], pad_id=0)
    first = np.flatnonzero(batch.position_ids[0] == 0)
    assert first.tolist() == [0, 4]
    assert (batch.labels[0][first] == forward.IGNORED).all()
    assert batch.labelled_tokens == 8


def test_what_inference_leaves_behind_can_be_trained_with(tiny_model: TinyModel) -> None:
    """Masks are kept between passes: one that was made under inference mode must not break a later backward pass."""
    model = load(tiny_model("3"), "sdpa")
    ids, positions, labels = tensors(ListedRows([2 * SLIDING_WINDOW + 5]).items, [[0]])
    with torch.inference_mode():
        forward.packed_logits(model, ids, positions)
    forward.labelled_loss(model, ids, positions, labels).backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None
