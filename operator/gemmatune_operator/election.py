"""Leader election by Lease: of several operators only the holder works, and it stops before another may begin."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from gemmatune_operator.ports import AlreadyExistsError, ConflictError, Object, RefusedError, UnavailableError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
RELEASE_SECONDS = 2.0
"""How long a graceful end waits for the API server to take the Lease back."""

log = structlog.get_logger(__name__)


class Leases(Protocol):
    """What the election needs of cluster.py."""

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The Lease as stored."""

    async def create(self, obj: Object) -> Object:
        """Creates it. Raises: AlreadyExistsError."""

    async def replace(self, obj: Object) -> Object:
        """Writes it with the resourceVersion that was read. Raises: ConflictError."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How an election is held.

    Args:
        name: of the Lease.
        namespace: of the Lease.
        lease: seconds after which a silent holder may be replaced.
        renew: seconds without a renewal after which the holder itself stops; less than `lease`.
        retry: seconds between two tries.
    """

    name: str
    namespace: str
    lease: float
    renew: float
    retry: float

    def __post_init__(self) -> None:
        if not self.lease > self.renew > self.retry > 0:
            raise ValueError(
                f"--lease-duration ({self.lease:g}) must be longer than --renew-deadline ({self.renew:g}), and that "
                f"longer than --retry-period ({self.retry:g})"
            )


class Election:
    """One candidate. All its times are this process's monotonic clock: clocks of two machines are never compared.

    `held` counts from the moment before the last renewal was sent, so the holder always gives up earlier than others
    may take over, even where its process stood still in between.
    """

    def __init__(
        self, leases: Leases, terms: Terms, identity: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.identity = identity or f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self._leases, self._terms, self._clock = leases, terms, clock
        self._until = self._answered = float("-inf")
        self._seen: tuple[str, float] | None = None
        self._holder = ""
        self._released = False

    @property
    def held(self) -> bool:
        """Whether this process may write now."""
        return self._clock() < self._until

    @property
    def in_touch(self) -> bool:
        """Whether the Lease was read or written lately: a standby that could take over."""
        return self._clock() < self._answered + self._terms.lease

    async def acquire(self) -> None:
        """Waits until this process holds the Lease."""
        while not await self._try():  # noqa: ASYNC110  (nobody on this machine knows when the Lease is free)
            await asyncio.sleep(self._terms.retry)
        log.info("leading", lease=f"{self._terms.namespace}/{self._terms.name}", identity=self.identity)

    async def keep(self) -> str:
        """Renews the Lease; returns only when it is lost, with the reason."""
        while True:
            await asyncio.sleep(min(self._terms.retry, max(0.0, self._until - self._clock())))
            if not await self._try() and self._holder not in ("", self.identity):
                return f"{self._holder} has taken the Lease"
            if not self.held:
                return f"the Lease was not renewed within {self._terms.renew:g} s"

    async def release(self) -> None:
        """Gives the Lease back so that another need not wait; never fails, never takes long."""
        if not self.held:
            return
        self._released = True
        try:
            await asyncio.wait_for(self._try(), RELEASE_SECONDS)
        except TimeoutError:
            log.warning("lease not released", reason="the API server does not answer")
        self._until = float("-inf")

    async def _try(self) -> bool:
        """One try to take, renew or release the Lease, within the time that a renewal has."""
        sent = self._clock()
        try:
            async with asyncio.timeout(self._terms.renew - self._terms.retry):
                done = await self._round()
        except (AlreadyExistsError, ConflictError):
            done = False  # somebody else was faster; the next try reads what became of it
        except (UnavailableError, RefusedError, TimeoutError) as error:
            log.warning("lease not reached", error=str(error) or type(error).__name__)
            return False
        self._answered = sent
        if done:
            self._until = float("-inf") if self._released else sent + self._terms.renew
        return done

    async def _round(self) -> bool:
        found = await self._leases.get("Lease", self._terms.namespace, self._terms.name)
        if found is None:
            await self._leases.create(self._lease(None))
            self._holder = self.identity
            return True
        spec = found.get("spec") or {}
        self._holder = str(spec.get("holderIdentity") or "")
        version = str(found["metadata"].get("resourceVersion"))
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        if self._holder not in ("", self.identity):
            lasts = float(spec.get("leaseDurationSeconds") or self._terms.lease)
            if self._clock() < self._seen[1] + lasts:
                return False
            log.info("the lease has run out", holder=self._holder)
        await self._leases.replace(self._lease(found))
        self._holder = self.identity
        return True

    def _lease(self, found: Object | None) -> Object:
        """The Lease as it shall be: held by this process, or by nobody when it is being released."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = (found or {}).get("spec") or {}
        ours = old.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": "" if self._released else self.identity,
            "leaseDurationSeconds": 1 if self._released else max(1, round(self._terms.lease)),
            "acquireTime": old.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if ours or found is None else 1),
        }
        meta = {"name": self._terms.name, "namespace": self._terms.namespace}
        if found is not None:
            meta = found["metadata"]
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}


def own_namespace() -> str:
    """The pod's namespace; outside of a pod POD_NAMESPACE or default."""
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return os.environ.get("POD_NAMESPACE") or "default"
