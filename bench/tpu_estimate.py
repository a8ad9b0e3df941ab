"""An estimate of tokens for a dollar, GPU against TPU: published peak figures, one assumed utilisation, no measurement.

Prices are the reader's own: the figures are for a price of one dollar an hour, and what is paid divides them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemmatune_api import catalog

MODEL = "gemma-2-9b"
UTILISATION = 0.4
"""Share of the peak that training is assumed to reach, the same everywhere."""
WORK = 6
"""Operations per token and weight of LoRA with gradient checkpointing: forward twice, and the gradient of what goes in.

A weight's own gradient, which would be another 2, is needed of the adapter alone.
"""
SECONDS = 3600


@dataclass(frozen=True)
class Accelerator:
    """Peak of the dense product in bf16 (TFLOP/s), as its maker publishes it; `type` is GKE's name."""

    type: str
    peak: float
    source: str


ACCELERATORS = (
    Accelerator("nvidia-l4", 121.0, "NVIDIA's data sheet (its 242 are with sparsity)"),
    Accelerator("nvidia-tesla-a100", 312.0, "NVIDIA's data sheet"),
    Accelerator("nvidia-h100-80gb", 989.0, "NVIDIA's data sheet, SXM (its 1,979 are with sparsity)"),
    Accelerator("tpu-v5-lite-podslice", 197.0, "Google Cloud's documentation of TPU v5e"),
    Accelerator("tpu-v6e-slice", 918.0, "Google Cloud's documentation of TPU v6e"),
)


def lines() -> list[dict[str, Any]]:
    """One line for each accelerator; the first one is what the others are held against."""
    model = catalog.by_name(MODEL)
    assert model is not None
    work = WORK * model.parameters  # the embedding counts: it is the head
    found = []
    for one in ACCELERATORS:
        tokens = one.peak * 1e12 * UTILISATION / work
        found.append(
            {
                "type": one.type,
                "peak": one.peak,
                "source": one.source,
                "tokens_per_second": tokens,
                "tokens_at_one_dollar": tokens * SECONDS,
                "as_cheap_up_to": one.peak / ACCELERATORS[0].peak,
            }
        )
    return found
