"""How the processes of an attempt on JAX meet, and what they tell each other: through JAX's coordinator, which rank 0
runs. Nothing that is said here waits for a device.
"""

from __future__ import annotations

import base64
import json
import time
from datetime import timedelta
from typing import Any

import numpy as np

from gemmatune_trainer.errors import TrainerError, kinds

HEARTBEAT_SECONDS = 60
"""Without a sign of a process for so long, JAX ends all others: what hangs in a collective ends by nothing else."""
FAREWELL_SECONDS = 5
"""How long the processes wait for each other when all is done."""
ASK_SECONDS = 5.0
"""How long one question to the coordinator lasts: between two, Python hears of signals."""
_LATE = "DEADLINE_EXCEEDED"
_ERROR, _ARRAY = "!error", "!array"


def said(value: Any) -> bytes:
    """What one process says, as JSON: whoever may reach the coordinator can set values, but no code.

    Tuples become lists; TrainerErrors and numpy arrays stay what they are.
    """
    return json.dumps(value, default=_encoded).encode()


def heard(text: bytes) -> Any:
    """What `said` wrote."""
    return json.loads(text, object_hook=_decoded)


def _encoded(value: Any) -> Any:
    if isinstance(value, TrainerError):
        return {_ERROR: [type(value).__name__, value.message, value.remedy, value.step, value.sequences]}
    if isinstance(value, np.ndarray):
        return {_ARRAY: [value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode()]}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"processes tell each other no {type(value).__name__}")


def _decoded(found: dict[str, Any]) -> Any:
    if _ERROR in found:
        name, *rest = found[_ERROR]
        return next(kind for kind in kinds() if kind.__name__ == name)(*rest)
    if _ARRAY in found:
        kind, shape, data = found[_ARRAY]
        return np.frombuffer(base64.b64decode(data), np.dtype(kind)).reshape(shape)
    return found


class Meeting:
    """The processes, once all are there; every method is called by all of them, in the same order."""

    def __init__(self, address: str, rank: int, size: int, wait: timedelta) -> None:
        import jax
        from jax._src import distributed

        jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away from the trainer
        jax.distributed.initialize(
            address,
            size,
            rank,
            cluster_detection_method="deactivate",
            initialization_timeout=int(wait.total_seconds()),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=FAREWELL_SECONDS,
        )
        self._client: Any = distributed.global_state.client
        self._shutdown = jax.distributed.shutdown
        self._rank = rank
        self._size = size
        self._turn = 0
        self._told: list[str] = []
        self._mine = ""

    def from_main(self, value: Any, patience: float) -> Any:
        """What rank 0 says, on every rank."""
        self._turn += 1
        key = f"gemmatune/{self._turn}"
        if self._rank:
            return heard(self._ask(key, patience))
        self._client.key_value_set_bytes(key, said(value))
        self._told.append(key)
        return value

    def gather(self, value: Any, patience: float) -> list[Any]:
        """What every rank says, in the order of ranks, on every rank."""
        self._turn += 1
        keys = [f"gemmatune/{self._turn}/{rank}" for rank in range(self._size)]
        self._client.key_value_set_bytes(keys[self._rank], said(value))
        found = [heard(self._ask(key, patience)) for key in keys]
        self._forget(keys[self._rank])
        return found

    def _ask(self, key: str, patience: float) -> bytes:
        """The value of a key, once somebody has set it."""
        deadline = time.monotonic() + patience
        while True:
            try:
                found: bytes = self._client.blocking_key_value_get_bytes(key, int(ASK_SECONDS * 1000))
                return found
            except RuntimeError as error:
                if _LATE not in str(error) or time.monotonic() > deadline:
                    raise

    def _forget(self, mine: str) -> None:
        """Takes away what everybody has read: all have come to this turn, so they have read everything before it."""
        for key in (*self._told, self._mine):
            if key:
                self._client.key_value_delete(key)
        self._told, self._mine = [], mine

    def leave(self) -> None:
        """Waits a moment until all have come to the end, and lets go: else the first to go would end the others."""
        self._shutdown()
