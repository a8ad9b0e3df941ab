"""How the processes of an attempt on JAX meet, and what they tell each other: through JAX's coordinator, which rank 0
runs. Nothing that is said here waits for a device.
"""

from __future__ import annotations

import pickle
import time
from datetime import timedelta
from typing import Any

HEARTBEAT_SECONDS = 60
"""Without a sign of a process for so long, JAX ends all others: what hangs in a collective ends by nothing else."""
FAREWELL_SECONDS = 5
"""How long the processes wait for each other when all is done."""
ASK_SECONDS = 5.0
"""How long one question to the coordinator lasts: between two, Python hears of signals."""
_LATE = "DEADLINE_EXCEEDED"


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
            return pickle.loads(self._ask(key, patience))  # from a process of this attempt
        self._client.key_value_set_bytes(key, pickle.dumps(value))
        self._told.append(key)
        return value

    def gather(self, value: Any, patience: float) -> list[Any]:
        """What every rank says, in the order of ranks, on every rank."""
        self._turn += 1
        keys = [f"gemmatune/{self._turn}/{rank}" for rank in range(self._size)]
        self._client.key_value_set_bytes(keys[self._rank], pickle.dumps(value))
        found = [pickle.loads(self._ask(key, patience)) for key in keys]
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
