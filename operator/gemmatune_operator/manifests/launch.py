"""What starts the trainer in a pod: one process, or torchrun with a process for every GPU of one or several nodes."""

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


def torchrun(job: str, laid: Layout, wait: int) -> list[str]:
    """A process for each GPU; `wait` is how long in seconds the pods of several nodes wait for each other.

    The rendezvous is static, with the pod's completion index as the node's rank: rank 0 is then always in the first
    pod, the only one that may write the run's status. (torchrun's c10d rendezvous numbers the nodes by itself.)
    """
    nodes = [f"--nnodes={laid.hosts}", f"--nproc-per-node={laid.per_host}", "--max-restarts=0"]
    if laid.hosts == 1:
        meet = ["--standalone"]
    else:
        meet = [
            "--node-rank=$(JOB_COMPLETION_INDEX)",
            f"--rdzv-id={job}",
            "--rdzv-backend=static",
            f"--rdzv-endpoint={service.host(job, 0)}:{service.RENDEZVOUS_PORT}",
            f"--rdzv-conf=timeout={wait}",
        ]
    return ["python", "-m", "torch.distributed.run", *nodes, *meet, "-m", names.TRAINER_MODULE, Role.TRAIN.value]


def longest_wait(limits: LimitsSpec | None, *, unbounded: bool) -> int:
    """Seconds that nodes of one attempt may come apart: limits.pendingDeadline, where it holds."""
    bound = limits.pending_deadline if limits is not None else None
    return LONGEST_WAIT_SECONDS if unbounded or bound is None else seconds(bound)
