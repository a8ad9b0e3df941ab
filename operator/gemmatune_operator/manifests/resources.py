"""Requests and limits of the trainer's container: the computed ones, the user's, and what a failure raised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gemmatune_api.accelerators import USABLE, Machine, allocatable_ephemeral_storage
from gemmatune_api.placement import ResourceSpec
from gemmatune_api.scratch import HEADROOM, pod_bytes
from gemmatune_api.scratch import whole as whole_gibibytes
from gemmatune_operator.manifests.quantities import GI, parse, text

CPU, MEMORY, DISK = "cpu", "memory", "ephemeral-storage"
LEAST_MEMORY = 4 * GI


def memory(needed: int) -> int:
    """Memory limit in bytes, in whole gibibytes, for an estimate of what the process needs."""
    return whole_gibibytes(max(needed * HEADROOM, LEAST_MEMORY))


@dataclass(frozen=True, slots=True)
class Resources:
    """Requests and limits by Kubernetes' names; memory and ephemeral-storage are always among both."""

    requests: Mapping[str, str]
    limits: Mapping[str, str]

    @classmethod
    def of(cls, cpu: str, memory: int, disk: int) -> Resources:
        """Bytes requested and limited alike; without a CPU limit, which would only slow the trainer."""
        limits = {MEMORY: text(memory), DISK: text(disk)}
        return cls({CPU: cpu, **limits}, limits)


def whole(machine: Machine, disk_needed: int) -> Resources:
    """Nearly all memory and cores of a machine that has no use beside the accelerators.

    Ephemeral storage is asked for as needed, since the size of the node's disk is not known; the limit lets a pod use
    what a disk of GKE's usual size has.
    """
    size = machine.pod_memory
    needed = pod_bytes(disk_needed)
    usual = int(allocatable_ephemeral_storage() * USABLE) // GI * GI
    requests = {CPU: str(math.floor(machine.allocatable_cpu * USABLE)), MEMORY: text(size), DISK: text(needed)}
    return Resources(requests, {MEMORY: text(size), DISK: text(max(needed, usual))})


def combine(
    computed: Resources,
    *,
    wanted: ResourceSpec | None,
    raised: Mapping[str, int | None],
    devices: Mapping[str, int] | None = None,
) -> Resources:
    """The user's values over the computed ones, lifted to `raised` (bytes, the answer to an attempt that ran out).

    `devices` are the accelerators, which nothing overrides: request and limit must both be what the attempt uses.
    """
    requests, limits = dict(computed.requests), dict(computed.limits)
    asked = {name: str(quantity) for name, quantity in ((wanted and wanted.requests) or {}).items()}
    bounded = {name: str(quantity) for name, quantity in ((wanted and wanted.limits) or {}).items()}
    requests.update(asked)
    limits.update(bounded)
    # Where the user sets one side only, the other follows, so that the request is never above the limit.
    for name, limit in bounded.items():
        if name not in asked and (name != CPU or parse(requests[CPU]) > parse(limit)):
            requests[name] = limit
    for name, request in asked.items():
        if name in limits and name not in bounded and parse(limits[name]) < parse(request):
            limits[name] = request
    for name, size in raised.items():
        if size is not None and parse(limits[name]) < size:
            requests[name] = limits[name] = text(size)
    for name, count in (devices or {}).items():
        requests[name] = limits[name] = str(count)
    return Resources(requests, limits)
