"""When a loss has run away: a pure watch over the losses of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

FACTOR = 3.0
"""A loss above this many times the running median is too high."""
PATIENCE_STEPS = 20
"""Too high for so many steps in a row means that it does not come back."""
_WINDOW_STEPS = 200


class LossWatch:
    """Remembers the losses of the last 200 steps that were not too high, and counts those in a row that are."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._usual: list[float] = []
        self._high = 0
        for loss in losses:
            self.add(loss, 0.0)

    def add(self, loss: float, gradient_norm: float) -> str:
        """Takes the loss of the next step; what is wrong with it, "" where nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if self._usual and loss > FACTOR * median(self._usual):
            self._high += 1
            if self._high >= PATIENCE_STEPS:
                return (
                    f"the loss is {loss:.4g}, for {self._high} steps above {FACTOR:g} times the running median "
                    f"{median(self._usual):.4g}"
                )
            return ""
        self._high = 0
        self._usual = [*self._usual[-_WINDOW_STEPS + 1 :], loss]
        return ""
