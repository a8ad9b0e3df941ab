"""The environment of a process that has virtual devices of PyTorch/XLA on a CPU."""

from __future__ import annotations


def virtual(devices: int) -> dict[str, str]:
    """`devices` of them; tests compile far more than they compute, so nothing is optimised for long."""
    return {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(devices),
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
