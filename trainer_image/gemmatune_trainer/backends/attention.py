"""Attention of packed documents: every document attends to itself alone, in groups of similar length.

A mask over the whole packed sequence would cost the square of its length, of which all but the documents' own squares
is thrown away. Here the documents of a group are rows of a small batch, padded at their ends, which no causal query
sees.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

SIMILAR = 0.8
"""Shortest document of a group, as a share of its longest."""
BY_DOCUMENT = {"sdpa": "documents_sdpa", "eager": "documents_eager"}
"""Names under which transformers finds this attention, by the one that it is made of."""

NO_MASK = torch.empty(1, 1, 0, 0)
"""transformers makes no mask where one of four dimensions is given; nothing reads this one."""


@dataclass(frozen=True, slots=True)
class Group:
    """Documents of similar length: `tokens` are their places in the packed order, `slots` those in a padded batch.

    The batch is [count, longest]; `source` names the token that fills each of its slots (padding repeats a token).
    """

    count: int
    longest: int
    tokens: Tensor
    slots: Tensor
    source: Tensor


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a packed pass of `length` tokens."""

    length: int
    groups: tuple[Group, ...]


def documents(position_ids: Tensor) -> Documents:
    """The documents of flattened position ids [tokens], each of which begins with position 0."""
    places = position_ids.cpu()
    begins = (places == 0).nonzero().flatten().tolist()
    ends = [*begins[1:], len(places)]
    by_length = sorted(zip(begins, ends, strict=True), key=lambda span: (span[0] - span[1], span[0]))
    groups: list[list[tuple[int, int]]] = []
    for begin, end in by_length:
        if groups and end - begin >= SIMILAR * (groups[-1][0][1] - groups[-1][0][0]):
            groups[-1].append((begin, end))
        else:
            groups.append([(begin, end)])
    return Documents(len(places), tuple(_group(spans, position_ids.device) for spans in groups))


def _group(spans: Sequence[tuple[int, int]], device: torch.device) -> Group:
    longest = spans[0][1] - spans[0][0]
    tokens = torch.cat([torch.arange(begin, end) for begin, end in spans])
    slots = torch.cat([torch.arange(end - begin) + row * longest for row, (begin, end) in enumerate(spans)])
    source = torch.cat([torch.arange(begin, begin + longest).clamp(max=end - 1) for begin, end in spans])
    return Group(
        len(spans),
        longest,
        tokens.to(device, non_blocking=True),
        slots.to(device, non_blocking=True),
        source.to(device, non_blocking=True),
    )


class _Gather(torch.autograd.Function):
    """[tokens, heads, width] to one [count, longest, heads, width] per group; the gradient of padding is dropped."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, found: Documents) -> tuple[Tensor, ...]:
        ctx.found = found
        rest = values.shape[1:]
        return tuple(
            values.index_select(0, group.source).view(group.count, group.longest, *rest) for group in found.groups
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _scatter(ctx.found, gradients), None


class _Scatter(torch.autograd.Function):
    """The way back: one [count, longest, heads, width] per group to [tokens, heads, width]."""

    @staticmethod
    def forward(ctx: Any, found: Documents, *values: Tensor) -> Tensor:
        ctx.found = found
        return _scatter(found, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        outputs: list[Tensor | None] = [None]
        for group in ctx.found.groups:
            size = group.count * group.longest
            padded = len(group.slots) < size
            batch = (torch.zeros if padded else torch.empty)(
                size, *gradient.shape[1:], dtype=gradient.dtype, device=gradient.device
            )
            batch.index_copy_(0, group.slots, gradient.index_select(0, group.tokens))
            outputs.append(batch.view(group.count, group.longest, *gradient.shape[1:]))
        return tuple(outputs)


def _scatter(found: Documents, values: Sequence[Tensor]) -> Tensor:
    rest = values[0].shape[2:]
    output = torch.empty(found.length, *rest, dtype=values[0].dtype, device=values[0].device)
    for group, value in zip(found.groups, values, strict=True):
        rows = value.reshape(group.count * group.longest, *rest)
        output.index_copy_(0, group.tokens, rows.index_select(0, group.slots))
    return output


def _attend(
    attention: Any,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    found: Documents,
    masked: bool,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention of [1, heads, tokens, width]; `masked`: the function has no causal mask of its own."""
    window = settings.get("sliding_window")
    batches = [_Gather.apply(part[0].transpose(0, 1), found) for part in (query, key, value)]
    outputs = []
    for index, group in enumerate(found.groups):
        parts = [batch[index].transpose(1, 2) for batch in batches]
        cut = window is not None and window < group.longest
        mask = None
        if masked or cut:
            mask = _mask(group.longest, window if cut else None, query.device, query.dtype if masked else torch.bool)
        outputs.append(attention(module, *parts, mask, **settings)[0])
    return _Scatter.apply(found, *outputs).unsqueeze(0), None


@lru_cache(maxsize=8)
def _mask(length: int, window: int | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A causal mask [1, 1, length, length], of the sliding window where one is given: bool, or numbers to add."""
    with torch.inference_mode(False):  # one that is made while nothing is trained serves training later
        seen = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
        if window is not None:
            seen = seen.triu_(1 - window)
        if dtype != torch.bool:
            seen = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
    return seen[None, None]


def _sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    documents: Documents | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return _attend(sdpa_attention_forward, module, query, key, value, documents, False, **settings)


def _eager(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    documents: Documents | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    own = sys.modules[type(module).__module__].eager_attention_forward
    if documents is None:
        found: tuple[Tensor, Tensor] = own(module, query, key, value, attention_mask, **settings)
        return found
    return _attend(own, module, query, key, value, documents, True, **settings)


def use(config: Any) -> None:
    """Lets a model attend by document; without documents, as in generation, it goes on as before.

    Raises:
        ValueError: its attention is neither sdpa nor eager.
    """
    name = config._attn_implementation
    if name in BY_DOCUMENT.values():
        return
    if name not in BY_DOCUMENT:
        raise ValueError(f"packed documents need attention sdpa or eager, the model has {name}")
    config._attn_implementation = BY_DOCUMENT[name]


for _name, _function in (("sdpa", _sdpa), ("eager", _eager)):
    AttentionInterface.register(BY_DOCUMENT[_name], _function)
    AttentionMaskInterface.register(BY_DOCUMENT[_name], ALL_MASK_ATTENTION_FUNCTIONS[_name])
