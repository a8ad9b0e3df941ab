"""Makes the keras backend: tells Keras and JAX what they read from the environment, before they are imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gemmatune_trainer.models import cache_folder

if TYPE_CHECKING:
    from gemmatune_api.runconfig import RunConfig
    from gemmatune_trainer.backends.keras_backend import KerasBackend
    from gemmatune_trainer.models import ModelFiles
    from gemmatune_trainer.ranks import Ranks
    from gemmatune_trainer.stop import StopFlag

COMPILED_SECONDS = 1.0
"""What takes at least so long to compile is kept for the next attempt that finds the same cache."""


def make(config: RunConfig, files: ModelFiles | None, stop: StopFlag, ranks: Ranks) -> KerasBackend:
    """The backend of a run."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_folder("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", COMPILED_SECONDS)
    # By default a TPU multiplies fp32 in bf16.
    exact = config.training.precision == "fp32"
    jax.config.update("jax_default_matmul_precision", "highest" if exact else None)
    from gemmatune_trainer.backends.keras_backend import KerasBackend

    return KerasBackend(config, files, stop, ranks)
