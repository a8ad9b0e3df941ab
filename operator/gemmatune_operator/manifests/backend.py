"""What a training backend's libraries read from the environment before the trainer can tell them anything."""

from __future__ import annotations

from gemmatune_api.defaults import backend_of
from gemmatune_api.layout import Layout
from gemmatune_api.spec import FineTuneSpec
from gemmatune_operator.manifests.pod import value
from gemmatune_operator.ports import Object


def environment(spec: FineTuneSpec, laid: Layout) -> list[Object]:
    """The device that a backend takes, and how many virtual ones it makes of a CPU."""
    backend, tpu = backend_of(spec), spec.accelerator.tpu is not None
    if backend == "xla":
        # More threads of OpenMP would only take the cores from the virtual devices.
        cpu = [] if tpu else [value("CPU_NUM_DEVICES", str(laid.per_host)), value("OMP_NUM_THREADS", "1")]
        return [value("PJRT_DEVICE", "TPU" if tpu else "CPU"), *cpu]
    if backend == "keras":
        flag = f"--xla_force_host_platform_device_count={laid.per_host}"
        cpu = [] if tpu else [value("XLA_FLAGS", flag)]
        # Named, a TPU that does not start is an error; unnamed, JAX would take the CPU of its node.
        return [value("KERAS_BACKEND", "jax"), value("JAX_PLATFORMS", "tpu,cpu" if tpu else "cpu"), *cpu]
    return []
