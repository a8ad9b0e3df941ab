"""The forward pass on fixed shapes: masks of packed documents, loss at labelled positions, and logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gemmatune_trainer.backends import xla_device
from gemmatune_trainer.data.pack import IGNORED

CHUNK = 256
"""Positions of every sequence whose logits exist at one time."""


def base_of(model: Any) -> Any:
    """The model under an adapter."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def soft_cap(model: Any) -> float | None:
    """Gemma 2's final_logit_softcapping; None where the model has none."""
    return getattr(base_of(model).config.get_text_config(), "final_logit_softcapping", None)


def masks(config: Any, position_ids: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """What is added to attention's scores [sequences, 1, length, length]: 0 where a token may look, else the lowest.

    It looks at its own document up to itself, in sliding layers not beyond the window. Documents begin at position 0.
    """
    length = position_ids.shape[1]
    document = (position_ids == 0).int().cumsum(dim=1)
    place = torch.arange(length, device=position_ids.device)
    distance = place.unsqueeze(1) - place.unsqueeze(0)
    seen = (document.unsqueeze(2) == document.unsqueeze(1)) & (distance >= 0)
    zero, lowest = torch.zeros((), dtype=dtype), torch.tensor(torch.finfo(dtype).min, dtype=dtype)
    zero, lowest = zero.to(seen.device), lowest.to(seen.device)
    whole = torch.where(seen, zero, lowest).unsqueeze(1)
    kinds = set(getattr(config, "layer_types", None) or [])
    if not kinds:
        return whole
    found = {"full_attention": whole}
    if "sliding_attention" in kinds:
        found["sliding_attention"] = torch.where(seen & (distance < config.sliding_window), zero, lowest).unsqueeze(1)
    return found


def hidden_states(model: Any, input_ids: Tensor, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Last hidden states [sequences, length, hidden] of packed documents, which do not see each other."""
    base = base_of(model)
    output = base.model(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=masks(base.config.get_text_config(), position_ids, dtype),
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def labelled_loss(model: Any, input_ids: Tensor, position_ids: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of -log p (nats) over the labelled tokens, each predicted from the position before it."""
    hidden = hidden_states(model, input_ids, position_ids, dtype).to(dtype)
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    head = base_of(model).get_output_embeddings().weight
    loss: Tensor = _HeadLoss.apply(hidden, targets, head, soft_cap(model))
    return loss


def logits(model: Any, input_ids: Tensor, position_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits [length, vocabulary] in fp32 of the first sequence."""
    hidden = hidden_states(model, input_ids, position_ids, dtype).to(dtype)[0]
    found = functional.linear(hidden, base_of(model).get_output_embeddings().weight.to(dtype)).float()
    cap = soft_cap(model)
    return torch.tanh(found / cap) * cap if cap else found


def next_token(model: Any, input_ids: Tensor, position_ids: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """The likeliest token after position `at` (a number on the device) of the first sequence."""
    hidden = hidden_states(model, input_ids, position_ids, dtype).to(dtype)[0]
    last = hidden.index_select(0, at.reshape(1))
    return functional.linear(last, base_of(model).get_output_embeddings().weight.to(dtype)).float().argmax(dim=-1)


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy through the head, chunk by chunk; gradients are made in the forward pass, from the same logits.

    Inputs: hidden [sequences, length, width], targets [sequences, length], head [vocabulary, width], soft cap.
    Output: a scalar in fp32. The products run in the dtype of hidden; soft-max, loss and the head's gradient are fp32.
    Shapes are fixed: positions without a label are computed too, and weigh nothing.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Tensor, cap: float | None) -> Tensor:
        needed, of_head = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        weight, ctx.head_dtype = head.to(hidden.dtype), head.dtype
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        head_gradient = torch.zeros_like(head, dtype=torch.float32) if of_head else None
        gradients = []
        with torch.autocast(xla_device.KIND, enabled=False):
            for begin in range(0, hidden.shape[1], CHUNK):
                states = hidden[:, begin : begin + CHUNK].clone()
                xla_device.in_turn([states, total])
                loss, gradient = _cross_entropy(
                    functional.linear(states, weight), targets[:, begin : begin + CHUNK], cap
                )
                total = total + loss
                if needed:
                    narrow = gradient.to(hidden.dtype)
                    gradients.append(narrow @ weight)
                    if head_gradient is not None:
                        part = narrow.flatten(0, 1).T @ states.flatten(0, 1)
                        head_gradient = head_gradient + part.float()
        if needed:
            ctx.save_for_backward(torch.cat(gradients, dim=1))
            ctx.head_gradient = head_gradient
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        of_head, ctx.head_gradient = ctx.head_gradient, None
        if of_head is not None:
            of_head = (of_head * outputs[0]).to(ctx.head_dtype)
        return gradient * outputs[0].to(gradient.dtype), None, of_head, None


def _cross_entropy(raw: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Summed loss of [sequences, length, vocabulary] logits before capping, and its gradient to them (fp32).

    The target is picked by comparison: a gather along the vocabulary, which chips may divide, would bring it together.
    """
    wide = raw.float()
    squash = torch.tanh(wide / cap) if cap else None
    if squash is not None and cap:
        wide = squash * cap
    found = functional.log_softmax(wide, dim=-1)
    vocabulary = torch.arange(raw.shape[-1], device=raw.device)
    hit = vocabulary == targets.unsqueeze(-1)
    loss = -torch.where(hit, found, torch.zeros((), device=raw.device)).sum()
    gradient = (found.exp() - hit.float()) * (targets != IGNORED).unsqueeze(-1).float()
    if squash is not None:
        gradient = gradient * (1.0 - squash * squash)
    return loss, gradient
