"""What an installation decides: images, cluster kind and prices; read once at the edge."""

from __future__ import annotations

from dataclasses import dataclass, field

DEFAULT_IMAGE = "gemmatune-trainer-torch:latest"


@dataclass(frozen=True, slots=True)
class Settings:
    """The installation, as data."""

    image: str = DEFAULT_IMAGE
    """Trainer image where the resource names none."""
    image_pull_policy: str = "IfNotPresent"
    """Pull policy of the trainer's container."""
    trainer_env: dict[str, str] = field(default_factory=dict)
    """Environment that every trainer gets, such as the endpoint of a Cloud Storage double in a test."""
    prices: dict[str, float] = field(default_factory=dict)
    """Price per hour by accelerator type (one GPU or chip), in one currency; empty: no costs are shown."""
    host_memory: int = 0
    """Bytes of memory of the CPU nodes (or of the laptop); 0 where unknown."""
