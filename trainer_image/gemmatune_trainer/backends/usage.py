"""How much memory training takes, as its device tells."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory(device: torch.device) -> int:
    """Bytes: of a GPU the most that was allocated so far, of a CPU what the process has in memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
