"""The training loops behind one protocol."""

from __future__ import annotations

from gemmatune_trainer.errors import InvalidConfig

BACKEND = "torch"
"""What this image trains with."""


def check(wanted: str) -> None:
    """Refuses another backend than the image's, before anything is fetched or written.

    Raises:
        InvalidConfig: the run asks for another one.
    """
    if wanted != BACKEND:
        raise InvalidConfig(
            f"this image trains with {BACKEND}, the run asks for backend {wanted}",
            "Name the image of that backend in pod.image, or leave pod.image out.",
        )
