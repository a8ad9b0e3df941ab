"""Memory that is no longer used goes back to the system: measured in a process of its own, as the system sees it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

LOADED_LIKE_A_QUANTISED_MODEL = """
import torch
from gemmatune_trainer.backends.usage import nothing_kept, resident

torch.ones(1 << 20)
before, kept = resident(), []
with nothing_kept(torch.device("cpu")):
    for number in range(100):
        wide = [torch.ones((5 - number % 3) << 18) for _ in range(8)]  # 3 to 5 MiB each, 40 at once
        kept.append(torch.ones(600 << 8))  # 0.6 MiB
        del wide
print(resident() - before - sum(tensor.nbytes for tensor in kept))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is no glibc")
def test_loading_leaves_no_holes_between_what_it_made() -> None:
    left = int(subprocess.check_output([sys.executable, "-c", LOADED_LIKE_A_QUANTISED_MODEL]))
    assert left < 8 << 20, f"{left >> 20} MiB are in memory beside the tensors that are left"


def test_a_gpu_gives_back_what_its_allocator_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gemmatune_trainer.backends.usage import give_back

    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    give_back(torch.device("cuda"))
    assert emptied
