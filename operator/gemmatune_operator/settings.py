"""What an installation decides: images, cluster kind and prices; read once at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gemmatune_api import supported
from gemmatune_api.names import ANNOTATION_RETRY
from gemmatune_api.placement import Toleration
from gemmatune_api.prices import Prices
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_api.supported import Refusal

TRY_AGAIN = f"set the annotation {ANNOTATION_RETRY} to a new value"
DEFAULT_IMAGE = "gemmatune-trainer-torch:latest"
DEFAULT_TPU_IMAGES = MappingProxyType(
    {"xla": "gemmatune-trainer-xla:latest", "keras": "gemmatune-trainer-keras:latest"}
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The installation, as data."""

    image: str = DEFAULT_IMAGE
    """Trainer image of backend torch where the resource names none."""
    tpu_images: Mapping[str, str] = field(default_factory=lambda: DEFAULT_TPU_IMAGES)
    """Trainer images of the backends xla and keras."""
    image_pull_policy: str = "IfNotPresent"
    """Pull policy of the trainer's container."""
    trainer_env: dict[str, str] = field(default_factory=dict)
    """Environment that every trainer gets, such as the endpoint of a Cloud Storage double in a test."""
    tolerations: tuple[Toleration, ...] = ()
    """Added to the pods of every Job; those that open accelerators only to the pods that have one."""
    defaults: SiteDefaults = field(default_factory=SiteDefaults)
    """What resources that do not say otherwise get; a namespace's ConfigMap goes before."""
    prices: Prices = field(default_factory=dict)
    """Prices per hour; empty: no costs are shown, and limits.maxCost is refused."""
    try_again: str = TRY_AGAIN
    """How a person lets a Failed run go on, as the end of a sentence; `gft run` has another way than a cluster."""
    host_memory: int = 0
    """Bytes of memory of the CPU nodes (or of the laptop); 0 where unknown."""
    tpu_webhook: bool = True
    """Whether the cluster tells the pods of a TPU slice who they are, as GKE's webhook does; else the manifest does."""
    refused: tuple[Refusal, ...] = supported.REFUSED
    """What is refused as not built yet. No option sets it: tests give less to see what lies below that check."""

    def image_of(self, backend: str) -> str:
        """Trainer image of a backend."""
        return self.tpu_images.get(backend, self.image)
