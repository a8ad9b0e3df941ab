"""What a PaliGemma has beside a text model: prompts about a picture, and a picture to compare logits with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmatune_trainer.backends.keras_batches import padded_length
from gemmatune_trainer.backends.keras_weights import has_images


def prompt(
    backbone: Any, ids: Sequence[int], new_tokens: int, pad_id: int, image: Any
) -> tuple[dict[str, Any], int, int]:
    """The arrays of a prompt that is to be continued, its positions, and those of a cache that also holds the answer.

    The tokens of `image` stand before those of the text. All of them see each other, as in training.
    """
    before = 0 if image is None else int(backbone.image_sequence_length)
    length = padded_length(len(ids) + new_tokens, 1 << 30)
    tokens = np.full((1, padded_length(len(ids), length)), pad_id, np.int32)
    tokens[0, : len(ids)] = ids
    filled = before + len(ids)
    arrays = {"tokens": tokens, "prefix": np.int32(0 if image is None else filled)}
    if image is not None:
        arrays["images"] = np.asarray(image, np.uint8)[None]
    return arrays, filled, before + length


def ramps(backbone: Any, count: int) -> Any:
    """One picture, from dark to bright, `count` times, at the size that the model reads; None where it reads none."""
    if not has_images(backbone):
        return None
    size = backbone.image_size
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    return np.broadcast_to(ramp[None, :, None, None], (count, size, size, 3))
