"""What starts the trainer in a pod: one process, or our launcher with several, of one or several nodes."""

from __future__ import annotations

from gemmatune_api import names
from gemmatune_api.base import seconds
from gemmatune_api.layout import Layout
from gemmatune_api.names import Role
from gemmatune_api.placement import LimitsSpec
from gemmatune_operator.manifests import service

LONGEST_WAIT_SECONDS = 7 * 24 * 3600
"""How long the first pod waits for the others where nothing bounds the wait for nodes."""


def trainer(role: Role) -> list[str]:
    """One process."""
    return ["python", "-m", names.TRAINER_MODULE, role.value]


def launcher(job: str, laid: Layout, wait: int, port: int = service.RENDEZVOUS_PORT) -> list[str]:
    """A process for each device of `laid`; `wait` is how long in seconds the pods of several nodes wait for each other.

    A pod's completion index decides its ranks: rank 0 is always in the first pod, the only one that may write the
    run's status.
    """
    several: list[str] = []
    if laid.hosts > 1:
        several = [
            f"--nodes={laid.hosts}",
            "--node=$(JOB_COMPLETION_INDEX)",
            f"--meet={service.host(job, 0)}:{port}",
            f"--wait={wait}",
        ]
    return ["python", "-m", names.LAUNCHER_MODULE, f"--per-node={laid.per_host}", *several, Role.TRAIN.value]


def longest_wait(limits: LimitsSpec | None, *, unbounded: bool) -> int:
    """Seconds that nodes of one attempt may come apart: limits.pendingDeadline, where it holds."""
    bound = limits.pending_deadline if limits is not None else None
    return LONGEST_WAIT_SECONDS if unbounded or bound is None else seconds(bound)
