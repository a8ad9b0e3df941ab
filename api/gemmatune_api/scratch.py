"""Ephemeral storage of a trainer's pod: /cache with room to spare, /tmp and the container's log."""

from __future__ import annotations

from gemmatune_api.accelerators import DEFAULT_BOOT_DISK_GB, GIB, allocatable_ephemeral_storage

TMP_BYTES = 2 * GIB
"""Size of /tmp."""
LOG_BYTES = GIB
"""Ephemeral storage left to the container's log."""
LEAST_CACHE = 8 * GIB
HEADROOM = 1.2
"""Share of estimates that a limit allows for: an estimate that is 20% short must not end a run."""
_BOOT_DISK_STEP_GB = 50


def whole(size: float) -> int:
    """Bytes, rounded up to whole gibibytes."""
    return -int(-size // GIB) * GIB


def pod_bytes(needed: int) -> int:
    """What a pod asks for in bytes, for an estimate of what lies under /cache."""
    return whole(max(needed * HEADROOM, LEAST_CACHE)) + TMP_BYTES + LOG_BYTES


def cache_bytes(limit: int) -> int:
    """Bytes of /cache under an ephemeral storage limit of `limit` bytes."""
    return max(limit - TMP_BYTES - LOG_BYTES, GIB)


def boot_disk_gb(size: int) -> int:
    """Smallest boot disk of a GKE node, in steps of 50 GB from the usual one, that leaves `size` bytes to a pod."""
    disk = DEFAULT_BOOT_DISK_GB
    while allocatable_ephemeral_storage(disk) < size:
        disk += _BOOT_DISK_STEP_GB
    return disk
