"""What an arm of the TPU benchmark is told: of the standard library alone, since arms run in several environments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Arm = Literal["torch", "xla", "keras", "trainer"]
RANK, ALPHA, LEARNING_RATE, SEED = 8, 16, 2e-4, 42
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MAY_COMPILE = 2
"""Steps that may compile; a compilation after them counts as late."""


@dataclass(frozen=True)
class Settings:
    """One arm on so many virtual devices.

    `rows` is a file of trainer_rows.Rows, and `ordered` the same rows step by step, as [[[ids, labels], ...], ...].
    `optimizer`: adafactor, as R2 has it, or adamw_torch.
    """

    arm: Arm
    devices: int
    model: str
    rows: str
    ordered: str
    batch: int
    length: int
    steps: int
    optimizer: str

    def argument(self) -> str:
        """The process's argument."""
        return json.dumps(asdict(self))
