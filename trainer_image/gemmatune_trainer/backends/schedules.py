"""Learning rates by step, as transformers computes them, for backends with loops of their own."""

from __future__ import annotations

import math

from gemmatune_api.runconfig import RunTraining


def learning_rate(training: RunTraining, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total_steps`: a linear warm-up, then the schedule."""
    warmup = 0 if training.schedule == "constant" else training.warmup(total_steps)
    if step < warmup:
        return training.learning_rate * step / max(1, warmup)
    if training.schedule in ("constant", "constant_with_warmup"):
        return training.learning_rate
    left = max(1, total_steps - warmup)
    if training.schedule == "linear":
        return training.learning_rate * max(0.0, (total_steps - step) / left)
    if training.schedule == "cosine":
        return training.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / left)))
    raise ValueError(f"no schedule is called {training.schedule!r}")
