"""AdamW as torch has it, by Keras's variables: what a step does to the trained weights."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import keras

from gemmatune_api.runconfig import RunTraining

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, as torch has them."""
_WITHOUT_DECAY = ["scale", "bias", "gamma", "beta"]
"""What the names of norms' weights and of biases have in them."""


class AdamW(keras.optimizers.AdamW):  # type: ignore[misc]
    """torch.optim.AdamW, with the variables of Keras's own.

    Keras adds epsilon to the root of the second moment before it corrects that one's bias. In the first steps epsilon
    is thirty times as large then, and a weight with a gradient of 1e-7 moves a quarter as far.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one weight, whose decay is done."""
        step = jnp.float32(self.iterations + 1)
        # expm1: of 1 - 0.999 fp32 has few digits.
        first, second = (-jnp.expm1(step * math.log(beta)) for beta in BETAS)
        place = self._get_variable_index(variable)
        mean, square = self._momentums[place], self._velocities[place]
        self.assign(mean, mean + (gradient - mean) * (1 - BETAS[0]))
        self.assign(square, square * BETAS[1] + gradient * gradient * (1 - BETAS[1]))
        root = jnp.sqrt(square.value) / jnp.sqrt(second)
        self.assign_sub(variable, learning_rate / first * mean / (root + EPSILON))


def optimizer(training: RunTraining) -> AdamW:
    """The optimizer of a run; its learning rate is set anew for every step."""
    found = AdamW(
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        beta_1=BETAS[0],
        beta_2=BETAS[1],
        epsilon=EPSILON,
    )
    found.exclude_from_weight_decay(var_names=_WITHOUT_DECAY)
    return found
