"""What AdamW and Adafactor do to a weight, written for chips: nothing but cheap calls, and rates that lie on the chips.

A step is written down anew each time, while the chips wait. An operation in place takes the host up to fifty times as
long as the same with a new result (0.8 ms for `clamp_`, 14 us for `clamp`); the one `copy_` at the end, which is cheap,
lets XLA write into the old tensor's memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, as torch has them."""
DECAY, SQUARE_EPSILON = 0.8, 1e-30
"""Adafactor's, as transformers has them; its clipping threshold is 1."""


class AdamW(torch.optim.Optimizer):
    """torch.optim.AdamW. The lr of a group is [step size, square root of the second correction, rate].

    PyTorch's own for rates on a device (`capturable`) divides by the rate: where it is 0, as at the first step of a
    warm-up, weights without a gradient become NaN.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    @staticmethod
    def rates(rate: float, step: int) -> list[float]:
        """What lr is to hold for a step, counted from 1.

        In double precision: near 1, fp32 has few digits for what is left of a power.
        """
        first, second = (1 - beta**step for beta in BETAS)
        return [rate / first, second**0.5, rate]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            size, correction, rate = group["lr"]
            for value in group["params"]:
                state, gradient = self.state[value], value.grad
                state["step"] += 1
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.copy_(mean + (gradient - mean) * (1 - BETAS[0]))
                square.copy_(square * BETAS[1] + gradient * gradient * (1 - BETAS[1]))
                kept = value * (1 - rate * group["weight_decay"]) if group["weight_decay"] else value
                value.copy_(kept - size * mean / (square.sqrt() / correction + EPSILON))


class Adafactor(torch.optim.Optimizer):
    """transformers' Adafactor at a given rate (`scale_parameter` and `relative_step` off, no first moment).

    The lr of a group is [rate, share of the old moment, share of the new one]. RMS of its state stays 0: nothing reads
    it at a given rate.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    @staticmethod
    def rates(rate: float, step: int) -> list[float]:
        """What lr is to hold for a step, counted from 1."""
        new: float = step**-DECAY
        return [rate, 1 - new, new]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            rate, old, new = group["lr"]
            one = torch.ones_like(rate)
            for value in group["params"]:
                self.state[value]["step"] += 1
                update = _scaled(self.state[value], value.grad, old, new)
                length = (update * update).sum().sqrt() / update.numel() ** 0.5
                update = update / torch.maximum(length, one) * rate
                kept = value - value * (rate * group["weight_decay"]) if group["weight_decay"] else value
                value.copy_(kept - update)


def _scaled(state: dict[str, Any], gradient: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The gradient by the root of its mean square, which the state keeps: of a matrix by rows and columns."""
    square = gradient * gradient + SQUARE_EPSILON
    if gradient.dim() < 2:
        held = state["exp_avg_sq"]
        held.copy_(held * old + square * new)
        return held.rsqrt() * gradient
    rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
    rows.copy_(rows * old + square.mean(dim=-1) * new)
    columns.copy_(columns * old + square.mean(dim=-2) * new)
    of_rows = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1)
    return of_rows * columns.unsqueeze(-2).rsqrt() * gradient
