"""The vision tower of a PaliGemma as far as the planner is concerned: image tokens, pixels, and a moment's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYS = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "patch": "patch_size",
    "image": "image_size",
}
"""The numbers of a tower, and their names in config.json's vision_config."""
DEFAULT_IMAGE = 224
"""transformers' image_size where a PaliGemma's config.json leaves it out."""


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """A SigLIP tower: it reads square images of `image` pixels a side in patches of `patch`."""

    hidden: int
    ffn: int
    heads: int
    patch: int
    image: int

    @property
    def tokens(self) -> int:
        """Tokens that an image becomes, before those of the text."""
        return (self.image // self.patch) ** 2

    @property
    def pixel_bytes(self) -> int:
        """Bytes of an image as prepare keeps it: three colours of a byte each."""
        return 3 * self.image**2

    def moment(self, rows: int, width: int) -> int:
        """Bytes that its widest layer takes for `rows` images in numbers of `width` bytes.

        It is never trained, so nothing of it is kept for a backward pass; scores and their soft-max are whole.
        """
        scores = 2 * self.heads * self.tokens**2
        layer = self.tokens * (6 * self.hidden + 2 * self.ffn)
        return rows * (width * (scores + layer) + 4 * self.pixel_bytes)


def vision_of(config: Mapping[str, Any]) -> VisionShape | None:
    """The tower of a PaliGemma's config.json; None where it does not say enough."""
    found = config.get("vision_config")
    if not isinstance(found, Mapping):
        return None
    numbers = {name: found.get(key) for name, key in KEYS.items()}
    if numbers["image"] is None:
        numbers["image"] = DEFAULT_IMAGE
    whole = {name: value for name, value in numbers.items() if isinstance(value, int) and value > 0}
    return VisionShape(**whole) if whole.keys() == KEYS.keys() else None
