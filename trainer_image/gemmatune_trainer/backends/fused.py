"""Layers of an adapted Gemma with a backward pass of their own: fewer passes over memory, and less kept for backward.

The weights of the base are frozen, so that nothing but the adapter needs a gradient; PEFT's and transformers' general
code keeps fp32 copies for more, and under PEFT every adapted layer casts its input to the adapter's fp32 and back. Here
the adapter's small matrices are cast instead. Values are those of PEFT and transformers within rounding; what none of
this fits (dropout, DoRA, a quantised or trained base) goes the general way, whole or in part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

ADAPTER = "default"
SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Modules that read the same input, in the order in which they are called."""
_NORMS = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
"""Norms that multiply by 1 + weight in fp32."""
_GATED = ("GemmaMLP", "Gemma2MLP", "Gemma3MLP")
"""Feed-forward blocks that are down(gelu(gate(x)) * up(x))."""


def install(model: Any) -> None:
    """Gives a PEFT model's frozen norms, gated feed-forward blocks and adapted linear layers their own passes."""
    for module in list(model.modules()):
        if type(module).__name__ in _NORMS and not module.weight.requires_grad:
            module.forward = _norm_of(module)
        if type(module).__name__ in _GATED and type(module.act_fn).__name__ == "GELUTanh":
            module.forward = _gated_of(module)
        for names in SHARING:
            sharing = [getattr(module, name, None) for name in names]
            adapted = [part for part in sharing if isinstance(part, LoraLayer)]
            if adapted:
                shared = _Shared(adapted)
                for index, part in enumerate(adapted):
                    part.forward = shared.forward(index)
    for module in model.modules():
        if isinstance(module, LoraLayer) and "forward" not in vars(module):
            module.forward = _Shared([module]).forward(0)


def _norm_of(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(values: Tensor) -> Tensor:
        output: Tensor = _Norm.apply(values, module.weight, module.eps)
        return output

    return forward


def _gated_of(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(values: Tensor) -> Tensor:
        gate = module.gate_proj(values)
        output: Tensor = module.down_proj(_Gated.apply(gate, module.up_proj(values)))
        return output

    return forward


class _Shared:
    """Adapted linear layers that read the same input: the first one that is called computes for all of them."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = list(layers)
        self._general = [layer.forward for layer in layers]
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def forward(self, index: int) -> Callable[..., Tensor]:
        """What the layer of this index does in place of PEFT's forward."""

        def forward(values: Tensor, *arguments: Any, **settings: Any) -> Tensor:
            if arguments or settings or not all(_is_plain(layer, values) for layer in self._layers):
                output: Tensor = self._one(index, values, *arguments, **settings)
                return output
            if self._input is not values or index not in self._waiting:
                self._input = values
                self._waiting = dict(enumerate(_lora(self._layers, values)))
            output = self._waiting.pop(index)
            if not self._waiting:
                self._input = None
            return output

        return forward

    def _one(self, index: int, values: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        """A layer whose base multiplies by itself (a quantised one), or that is none of ours to shorten."""
        layer = self._layers[index]
        if arguments or settings or not _is_lora(layer):
            output: Tensor = self._general[index](values, *arguments, **settings)
            return output
        base = layer.base_layer(values)
        branch = layer.lora_dropout[ADAPTER](values)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        added: Tensor = _LoraAdd.apply(base, branch.to(base.dtype), a, b, layer.scaling[ADAPTER])
        return added


def _is_lora(layer: Any) -> bool:
    """Whether it adds plain LoRA of the one adapter."""
    plain = layer.active_adapters == [ADAPTER] and not layer.lora_variant
    return plain and not layer.disable_adapters and not layer.merged


def _is_plain(layer: Any, values: Tensor) -> bool:
    """Whether it is plain LoRA, without dropout, around a frozen matrix in the dtype of its input."""
    base = layer.base_layer
    return (
        _is_lora(layer)
        and type(base) is nn.Linear
        and base.bias is None
        and base.weight.dtype == values.dtype
        and not base.weight.requires_grad
        and (not layer.training or isinstance(layer.lora_dropout[ADAPTER], nn.Identity))
    )


def _lora(layers: Sequence[Any], values: Tensor) -> tuple[Tensor, ...]:
    weights = [
        weight
        for layer in layers
        for weight in (layer.base_layer.weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
    ]
    found: tuple[Tensor, ...] = _LoraLinears.apply(values, tuple(layer.scaling[ADAPTER] for layer in layers), *weights)
    return found


class _LoraLinears(torch.autograd.Function):
    """x W^T + scale (x A^T) B^T for several frozen W with trained fp32 A and B, in the dtype of x and W.

    Kept for the backward pass: x once, and x A^T.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scales: tuple[float, ...], *weights: Tensor) -> tuple[Tensor, ...]:
        rows = values.reshape(-1, values.shape[-1])
        bases, firsts, seconds = weights[0::3], weights[1::3], weights[2::3]
        inner = functional.linear(rows, torch.cat(firsts).to(rows.dtype))
        outputs, begin = [], 0
        for base, second, scale in zip(bases, seconds, scales, strict=True):
            output = functional.linear(rows, base)
            end = begin + second.shape[1]
            output.addmm_(inner[:, begin:end], second.to(rows.dtype).T, alpha=scale)
            outputs.append(output.view(*values.shape[:-1], base.shape[0]))
            begin = end
        ctx.scales, ctx.shape = scales, values.shape
        ctx.save_for_backward(rows, inner, *weights)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, *weights = ctx.saved_tensors
        bases, firsts, seconds = weights[0::3], weights[1::3], weights[2::3]
        flat = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        inners = [
            (gradient @ second.to(gradient.dtype)).mul_(scale)
            for gradient, second, scale in zip(flat, seconds, ctx.scales, strict=True)
        ]
        inner_gradient = torch.cat(inners, 1) if len(inners) > 1 else inners[0]
        input_gradient = None
        if ctx.needs_input_grad[0]:
            input_gradient = flat[0] @ bases[0]
            for gradient, base in zip(flat[1:], bases[1:], strict=True):
                input_gradient.addmm_(gradient, base)
            input_gradient.addmm_(inner_gradient, torch.cat(firsts).to(rows.dtype))
            input_gradient = input_gradient.view(ctx.shape)
        sizes = [first.shape[0] for first in firsts]
        first_gradients = (inner_gradient.T @ rows).to(firsts[0].dtype).split(sizes)
        found: list[Tensor | None] = []
        for gradient, part, first, scale in zip(flat, inner.split(sizes, 1), first_gradients, ctx.scales, strict=True):
            second = (gradient.T @ part).to(first.dtype).mul_(scale)
            found += [None, first, second]
        return (input_gradient, None, *found)


class _LoraAdd(torch.autograd.Function):
    """y + scale (x A^T) B^T with trained fp32 A and B, in the dtype of x: where the base gives y by itself."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, values: Tensor, first: Tensor, second: Tensor, scale: float) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        inner = functional.linear(rows, first.to(rows.dtype))
        ctx.scale, ctx.shape = scale, values.shape
        ctx.save_for_backward(rows, inner, first, second)
        output = torch.addmm(base.reshape(-1, base.shape[-1]), inner, second.to(rows.dtype).T, alpha=scale)
        return output.view(base.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, first, second = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        inner_gradient = (gradient @ second.to(gradient.dtype)).mul_(ctx.scale)
        values = None
        if ctx.needs_input_grad[1]:
            values = (inner_gradient @ first.to(rows.dtype)).view(ctx.shape)
        first_gradient = (inner_gradient.T @ rows).to(first.dtype)
        second_gradient = (gradient.T @ inner).to(second.dtype).mul_(ctx.scale)
        return gradients[0], values, first_gradient, second_gradient, None


class _Norm(torch.autograd.Function):
    """Gemma's RMSNorm with a frozen weight, in fp32 inside; keeps its input as it came, and one number per row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = values.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(values, weight, scale)
        return (wide * scale).mul_(1.0 + weight.float()).type_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        values, weight, scale = ctx.saved_tensors
        gradient = gradients[0] * (1.0 + weight.float())
        normal = values * scale
        mean = (gradient * normal).mean(-1, keepdim=True)
        return gradient.addcmul_(normal, mean, value=-1).mul_(scale).type_as(values), None, None


class _Gated(torch.autograd.Function):
    """gelu(gate) * up (tanh's approximation); keeps the two inputs, and computes the gelu again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        up_gradient = functional.gelu(gate, approximate="tanh").mul_(gradients[0])
        return torch.ops.aten.gelu_backward(gradients[0] * up, gate, approximate="tanh"), up_gradient
