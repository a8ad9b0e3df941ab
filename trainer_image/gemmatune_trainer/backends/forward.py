"""The one packed forward pass (training, evaluation, verification), and the loss at labelled positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
CHUNK_ROWS = 256
"""Labelled positions whose logits exist at one time."""


def packed_hidden(model: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Last hidden states [sequences, length, hidden] of packed documents, which do not see each other.

    transformers builds block-diagonal masks from position_ids that restart at 0, but only without an attention mask
    and without a cache.
    """
    output = _decoder(model)(input_ids=input_ids, position_ids=position_ids, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


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
                chunk_loss, logit_gradient = _cross_entropy(logits, targets[rows], cap, needed)
                total += chunk_loss
                if gradient is not None and logit_gradient is not None:
                    logit_gradient = logit_gradient.to(head.dtype)
                    gradient[rows] = (logit_gradient @ head).to(gradient.dtype)
                    if head_gradient is not None:
                        head_gradient += logit_gradient.T @ states
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


def _cross_entropy(logits: Tensor, targets: Tensor, cap: float | None, needed: bool) -> tuple[Tensor, Tensor | None]:
    """Summed loss of [rows, vocabulary] logits before capping, and its gradient to them (None where not needed)."""
    squash = None
    if cap:
        squash = torch.tanh(logits.float() / cap)
        logits = squash * cap
    log_probabilities = functional.log_softmax(logits, dim=-1, dtype=torch.float32)
    index = targets.unsqueeze(1)
    loss = -log_probabilities.gather(1, index).sum()
    if not needed:
        return loss, None
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, index, torch.full_like(index, -1.0, dtype=gradient.dtype))
    if squash is not None:
        gradient *= 1.0 - squash * squash
    return loss, gradient
