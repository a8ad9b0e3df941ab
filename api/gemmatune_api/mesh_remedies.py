"""Other ways to divide a run of backend xla or keras among TPU chips, as remedies where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator

from gemmatune_api import accelerators
from gemmatune_api.accelerators import TpuType, topology_chips
from gemmatune_api.defaults import backend_of
from gemmatune_api.layout import Layout, rows
from gemmatune_api.placement import MeshSpec, TpuSpec
from gemmatune_api.spec import FineTuneSpec


def divided_otherwise(spec: FineTuneSpec, laid: Layout) -> Iterator[tuple[str, FineTuneSpec]]:
    """What each change is called, and the spec with it: more of the chips along model, then larger slices."""
    tpu = spec.accelerator.tpu
    found = accelerators.tpu(tpu.type) if tpu is not None else None
    if tpu is None or found is None or laid.mesh is None:
        return
    for model in range(laid.mesh[1] + 1, laid.chips + 1) if spec.mesh is not None else ():
        data = laid.chips // model
        if data * model == laid.chips and _divides(spec, data):
            mesh = MeshSpec(data=data, model=model)
            yield f"mesh {{data: {data}, model: {model}}}", spec.model_copy(update={"mesh": mesh})
    yield from _larger(spec, tpu, found, laid.chips)


def _divides(spec: FineTuneSpec, data: int) -> bool:
    """Whether every group along data has whole rows of a step, and whole micro-batches where they are written."""
    micro = (spec.training.micro_batch_size if spec.training else None) or 1
    return rows(spec) % (data * micro) == 0


def _larger(spec: FineTuneSpec, tpu: TpuSpec, found: TpuType, chips: int) -> Iterator[tuple[str, FineTuneSpec]]:
    """Slices of the same type with more chips, in a mesh of the planner's choice; for backend xla those of one host."""
    for topology in found.topologies:
        whole, sizes = topology_chips(topology), found.chips_per_node(topology)
        if whole <= chips or not sizes or (backend_of(spec) == "xla" and whole not in sizes):
            continue
        size = whole if backend_of(spec) == "xla" else sizes[0]
        chosen = f" with chipsPerNode {size}" if len(sizes) > 1 else ""
        larger = tpu.model_copy(update={"topology": topology, "chips_per_node": size if chosen else None})
        accelerator = spec.accelerator.model_copy(update={"tpu": larger})
        update = {"accelerator": accelerator, "mesh": None}
        without = " without mesh" if spec.mesh is not None else ""
        yield f"accelerator.tpu.topology {topology}{chosen}{without}", spec.model_copy(update=update)
