"""The one packed forward pass (training, evaluation, verification), and the loss at labelled positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gemmatune_trainer.backends import attention

IGNORED = -100
CHUNK_ROWS = 256
"""Labelled positions whose logits exist at one time."""
WIDE_LOGITS = 1 << 21
"""Logits of a chunk that are in fp32 at one time, for soft-max and gradient."""


def packed_hidden(model: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Last hidden states [sequences, length, hidden] of packed documents, which do not see each other.

    A document begins wherever position_ids are 0. All sequences pass as one, and attention goes document by document:
    how they were packed decides nothing.
    """
    attention.use(_base(model).config.get_text_config())
    output = _decoder(model)(
        input_ids=input_ids.reshape(1, -1),
        position_ids=position_ids.reshape(1, -1),
        attention_mask=attention.NO_MASK,
        use_cache=False,
        documents=attention.documents(position_ids.reshape(-1)),
    )
    hidden: Tensor = output.last_hidden_state
    return hidden.view(*input_ids.shape, hidden.shape[-1])


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _decoder(model: Any) -> Any:
    return _base(model).model


def soft_cap(model: Any) -> float | None:
    """Gemma 2's final_logit_softcapping; None where the model has none."""
    return getattr(_base(model).config.get_text_config(), "final_logit_softcapping", None)


def packed_logits(model: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Logits [sequences, length, vocabulary] in fp32 of packed documents."""
    hidden = packed_hidden(model, input_ids, position_ids)
    logits = functional.linear(hidden, _base(model).get_output_embeddings().weight.to(hidden.dtype)).float()
    cap = soft_cap(model)
    return torch.tanh(logits / cap) * cap if cap else logits


def labelled_loss(model: Any, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log p (nats) over the labelled tokens, each predicted from the position before it.

    The head is computed at those positions only.
    """
    hidden = packed_hidden(model, input_ids, position_ids)
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    head = _base(model).get_output_embeddings().weight
    loss: Tensor = _HeadLoss.apply(hidden[:, :-1][labelled], targets[labelled], head, soft_cap(model))
    return loss


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy through the head, in chunks; the gradients are made in the forward pass, from the same logits.

    Inputs: hidden [rows, width], targets [rows], head [vocabulary, width], soft cap. Output: a scalar in fp32. The
    products run in the dtype of the head, under autocast in autocast's; soft-max, loss and the head's gradient, where
    it is trained, are fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Tensor, cap: float | None) -> Tensor:
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kind, ctx.head_dtype = hidden.device.type, head.dtype
        if torch.is_autocast_enabled(kind):
            head = head.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            for begin in range(0, hidden.shape[0], CHUNK_ROWS):
                rows = slice(begin, begin + CHUNK_ROWS)
                states = hidden[rows].to(head.dtype)
                logits = functional.linear(states, head)
                total += _cross_entropy(logits, targets[rows], cap, needed)
                if gradient is not None:
                    gradient[rows] = (logits @ head).to(gradient.dtype)
                    if head_gradient is not None:
                        head_gradient += logits.T @ states
                del logits  # before the next chunk's exist
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.head_gradient = head_gradient
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        of_head, ctx.head_gradient = ctx.head_gradient, None  # as large as the embedding: never twice in memory
        if of_head is not None:
            of_head = of_head.mul_(outputs[0]).to(ctx.head_dtype)
        return gradient * outputs[0].to(gradient.dtype), None, of_head, None


def _cross_entropy(logits: Tensor, targets: Tensor, cap: float | None, needed: bool) -> Tensor:
    """Summed loss of [rows, vocabulary] logits before capping, which become its gradient to them where it is needed.

    A few rows at a time: what is in fp32 between the passes stays small, and on many devices in the cache.
    """
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    rows = max(1, WIDE_LOGITS // logits.shape[1])
    for begin in range(0, logits.shape[0], rows):
        part = logits[begin : begin + rows]
        wide = part.float()
        squash = torch.tanh(wide / cap) if cap else None
        if squash is not None and cap:
            wide = squash * cap
        wide = functional.log_softmax(wide, dim=-1)
        index = targets[begin : begin + rows].unsqueeze(1)
        total -= wide.gather(1, index).sum()
        if needed:
            wide.exp_().scatter_add_(1, index, torch.full_like(index, -1.0, dtype=wide.dtype))
            if squash is not None:
                wide *= 1.0 - squash * squash
            part.copy_(wide)
    return total
