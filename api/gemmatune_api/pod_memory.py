"""Host memory of a pod with accelerators: what a run needs of it, what its machine leaves it, and larger machines."""

from __future__ import annotations

from collections.abc import Iterator

from gemmatune_api import accelerators, memory
from gemmatune_api.accelerators import GIB, TpuType, topology_chips
from gemmatune_api.catalog import GemmaModel
from gemmatune_api.changes_to_fit import Changed
from gemmatune_api.checks_accelerator import batch
from gemmatune_api.layout import layout
from gemmatune_api.memory import Setting
from gemmatune_api.placement import TpuSpec
from gemmatune_api.quantity import parse
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.supported import unsupported

_GPU_SHARED, _GPU_SHARED_EACH = GIB, 2 * GIB


def gpu_shared(per_host: int) -> int:
    """Bytes of /dev/shm beside GPUs; of several each has its own: without a direct link NCCL moves all through it."""
    return _GPU_SHARED if per_host == 1 else per_host * _GPU_SHARED_EACH


def needed(model: GemmaModel, setting: Setting, per_host: int) -> int:
    """Bytes that a pod needs: the runtime, a shard in flight and the state to save.

    Each GPU has a process of its own, all chips of a TPU host share one. With full tuning one process of the run holds
    masters and the optimizer's state whole for a checkpoint, which is written while training goes on, or at the end
    the result in 16 bit; the pods of a run are all made alike.
    """
    processes = per_host if setting.device == "cuda" else 1
    shard = min(model.stored_bytes * model.checkpoint_parameters, memory.LARGEST_SHARD)
    each, state = memory.GPU_HOST_RUNTIME + shard, memory.optimizer_state(model, setting)
    if setting.method == "full":
        return processes * each + state + 4 * model.parameters
    return processes * (each + 2 * (memory.adapter_weights(model, setting) + state))


def capacity(spec: FineTuneSpec, need: int) -> int | None:
    """Bytes that a pod gets on the machine that its Job is made for: the smallest with `need`, else the largest.

    More where pod.resources asks for more. None where there are no accelerators, or no catalog has their machines.
    """
    per_host, wanted = layout(spec).per_host, spec.accelerator
    found = accelerators.tpu(wanted.tpu.type) if wanted.tpu else None
    if wanted.gpu is not None:
        machine = accelerators.machine_for(wanted.gpu.type, per_host, need + gpu_shared(per_host))
    else:
        machine = found.machine(per_host) if found is not None else None
    if machine is None:
        return None
    own = _written(spec)
    # A TPU's machine has one size; of GPUs people may have others than the catalog.
    return max(machine.pod_memory, min(own, machine.allocatable_memory) if found is not None else own)


def _written(spec: FineTuneSpec) -> int:
    """Bytes of memory that pod.resources asks for; 0 where it does not."""
    resources = spec.pod.resources if spec.pod else None
    blocks = (resources.requests, resources.limits) if resources else ()
    return max((int(parse(block["memory"])) for block in blocks if block and "memory" in block), default=0)


def larger_hosts(spec: FineTuneSpec) -> Iterator[Changed]:
    """The same on TPU machines with more host memory: others of this slice, then the other types' slices.

    Slices of other types have at least as much memory on their chips.
    """
    tpu = spec.accelerator.tpu
    own = accelerators.tpu(tpu.type) if tpu is not None else None
    if tpu is None or own is None:
        return
    chips = topology_chips(tpu.topology)
    for size in own.chips_per_node(tpu.topology):
        yield from _on(spec, own, tpu.topology, size)
    for found in accelerators.tpus():
        topologies = [tpu.topology] if found.allows(tpu.topology) else list[str]()
        topologies += [name for name in found.topologies if topology_chips(name) * found.hbm >= chips * own.hbm]
        for topology in topologies if found is not own else ():
            for size in found.chips_per_node(topology):
                yield from _on(spec, found, topology, size)


def _on(spec: FineTuneSpec, found: TpuType, topology: str, size: int) -> Iterator[Changed]:
    """The spec on slices whose hosts have `size` chips, unless it is refused there."""
    several = len(found.chips_per_node(topology)) > 1
    wanted = TpuSpec(type=found.type, topology=topology, chips_per_node=size if several else None)
    other = topology_chips(topology) != layout(spec).chips and spec.mesh is not None
    accelerator = spec.accelerator.model_copy(update={"tpu": wanted})
    changed = spec.model_copy(update={"accelerator": accelerator, "mesh": None if other else spec.mesh})
    if not unsupported(changed) and not any(batch(changed)):
        words = f"type: {found.type}, topology: {topology}" + (f", chipsPerNode: {size}" if several else "")
        yield f"accelerator.tpu {{{words}}}{' without mesh' if other else ''}", changed
