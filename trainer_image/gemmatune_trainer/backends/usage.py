"""How much memory training takes, as its device tells, and giving back what is no longer used."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's parameters (malloc.h of glibc)."""
_MIB = 1 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory(device: torch.device) -> int:
    """Bytes: of a GPU the most that was allocated so far, of a CPU what the process has in memory now."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resident()


def resident() -> int:
    """Bytes that the process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def give_back(device: torch.device) -> None:
    """Returns the memory of a model that is gone to the device and to the system, before the next one is loaded.

    The C library keeps freed memory, 300 MB of a quantised 270M; what comes next does not always fit into its holes.
    """
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


@contextmanager
def nothing_kept(device: torch.device) -> Iterator[None]:
    """Lets every block of a MiB and more go back to the system when it is freed, while a model is loaded onto a CPU.

    Else the C library puts them beside what stays: quantising a 270M left holes of 300 to 850 MB (measured), as they
    fell. Afterwards large blocks are kept for reuse, as the library comes to do by itself: training wants them again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" else None
    if mallopt is None:  # no glibc
        yield
        return
    mallopt(_MMAP_THRESHOLD, _MIB)
    mallopt(_TRIM_THRESHOLD, _MIB)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        mallopt(_TRIM_THRESHOLD, 64 * _MIB)
