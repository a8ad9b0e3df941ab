"""The devices of the keras backend: that they are those which the run is for, before anything is put on them."""

from __future__ import annotations

import jax

from gemmatune_trainer.errors import AcceleratorMissing, text_of


def check(device: str) -> None:
    """Starts the devices. Where JAX is not told a platform, it takes the CPU in silence if a TPU does not start.

    `device`: what the run is for; JAX_PLATFORMS, where it is set, says what stands for it.

    Raises:
        AcceleratorMissing: they do not start, or are of another kind.
    """
    wanted = (jax.config.jax_platforms or device).split(",")[0]
    try:
        found = jax.devices()
    except RuntimeError as error:
        raise AcceleratorMissing(f"the node's {wanted.upper()} does not start: {text_of(error)}") from error
    kind = found[0].platform
    if kind != wanted:
        raise AcceleratorMissing(
            f"the run is for a {wanted.upper()}, and JAX finds none on this node, only {len(found)} x {kind}"
        )
