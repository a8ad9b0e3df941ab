"""The rules for shapes of accelerators: types, counts, topologies and meshes that exist, and rows to share."""

from __future__ import annotations

from collections.abc import Iterator

from gemmatune_api import accelerators
from gemmatune_api.defaults import DIVIDED_OPTIMIZERS, backend_of
from gemmatune_api.errors import Problem, either, shown
from gemmatune_api.layout import Layout, layout, rows
from gemmatune_api.placement import MeshSpec, TpuSpec
from gemmatune_api.spec import FineTuneSpec


def gpu(spec: FineTuneSpec) -> Iterator[Problem]:
    """A GPU type of GKE, and as many in a node as one of its machines has."""
    wanted, path = spec.accelerator.gpu, "spec.accelerator.gpu"
    if wanted is None:
        return
    if accelerators.gpu(wanted.type) is None:
        near = [name for name in accelerators.near(wanted.type) if accelerators.gpu(name)]
        choices = near or [item.type for item in accelerators.gpus()]
        yield Problem(f"{path}.type", "is no GPU type of GKE", f"Use {either(choices)}.", shown(wanted.type))
        return
    counts = accelerators.possible_counts(wanted.type)
    if (wanted.count or 1) not in counts:
        found = shown(wanted.count) if wanted.count is not None else "1 by default"
        remedy = f"Use {either(counts)} per node."
        yield Problem(f"{path}.count", f"no machine has that many {wanted.type}", remedy, found)


def tpu(spec: FineTuneSpec) -> Iterator[Problem]:
    """A TPU type of GKE, a topology that it has, and chips per node that the topology can have."""
    wanted, path = spec.accelerator.tpu, "spec.accelerator.tpu"
    if wanted is None:
        return
    found = accelerators.tpu(wanted.type)
    if found is None:
        near = [name for name in accelerators.near(wanted.type) if accelerators.tpu(name)]
        choices = near or [item.type for item in accelerators.tpus()]
        yield Problem(f"{path}.type", "is no TPU type of GKE", f"Use {either(choices)}.", shown(wanted.type))
    elif not found.allows(wanted.topology):
        more = f" (or AxBxC of multiples of 4, A <= B <= C, up to {found.most_chips} chips)"
        yield Problem(
            f"{path}.topology",
            f"{wanted.type} has no slices of this topology",
            f"Use {either(found.topologies)}{more if found.dimensions == 3 else ''}.",
            shown(wanted.topology),
        )
    else:
        yield from _chips_per_node(found, wanted)


def _chips_per_node(found: accelerators.TpuType, wanted: TpuSpec) -> Iterator[Problem]:
    path, possible = "spec.accelerator.tpu.chipsPerNode", found.chips_per_node(wanted.topology)
    where = f"{wanted.topology} of {wanted.type}"
    if wanted.chips_per_node is None and len(possible) > 1:
        yield Problem(path, f"{where} comes in several shapes", f"Set it to {either(possible)}.")
    elif wanted.chips_per_node is not None and wanted.chips_per_node not in possible:
        yield Problem(path, f"{where} has no such machines", f"Use {either(possible)}.", shown(wanted.chips_per_node))


def mesh(spec: FineTuneSpec) -> Iterator[Problem]:
    """A mesh is made of exactly the chips that there are."""
    wanted, whole = spec.mesh, _layout(spec, without_mesh=True)
    if wanted is None or whole is None or backend_of(spec) == "torch":
        return
    data, model, chips = wanted.data, wanted.model, whole.chips
    if data is not None and model is not None and data * model != chips:
        choices = [f"{chips // number} x {number}" for number in _divisors(chips)]
        yield Problem(
            "spec.mesh",
            f"data x model must be the {chips} chips",
            f"Use {either(choices)}, or remove one of the two.",
            f"{data} x {model} = {data * model}",
        )
    for name, size in (("data", data), ("model", model)):
        if size is not None and chips % size and (data is None or model is None):
            yield Problem(
                f"spec.mesh.{name}", f"must divide the {chips} chips", f"Use {either(_divisors(chips))}.", shown(size)
            )


def batch(spec: FineTuneSpec) -> Iterator[Problem]:
    """The rows of a step can be divided among the devices, and a device's share into micro-batches."""
    found = _layout(spec)
    if found is None or found.replicas == 1 or any(gpu(spec)):
        return
    whole, share = rows(spec), rows(spec) // found.replicas
    among = f"{found.replicas} {'GPUs' if spec.accelerator.gpu else 'groups of chips along mesh.data'}"
    micro = spec.training.micro_batch_size if spec.training else None
    if whole % found.replicas:
        yield Problem(
            "spec.training.globalBatchSize",
            f"must be a multiple of the {among} that share the rows of a step",
            f"Use such as {either([found.replicas * number for number in _near(whole / found.replicas)])}.",
            str(whole),
        )
    elif micro is not None and whole % micro == 0 and share % micro:
        yield Problem(
            "spec.training.microBatchSize",
            f"must divide {share}, the share of each of {among} of globalBatchSize {whole}",
            f"Use {either(_divisors(share))}.",
            shown(micro),
        )


def division(spec: FineTuneSpec) -> Iterator[Problem]:
    """Several GPUs divide the state of an optimizer that full tuning uses."""
    gpu, optimizer = spec.accelerator.gpu, spec.training.optimizer if spec.training else None
    if gpu is None or spec.full is None or optimizer is None or optimizer in DIVIDED_OPTIMIZERS:
        return
    if (gpu.count or 1) * (gpu.nodes or 1) > 1:
        yield Problem(
            "spec.training.optimizer",
            "its state cannot be divided among several GPUs, as full tuning does",
            f"Use {either(DIVIDED_OPTIMIZERS)}, or one GPU.",
            shown(optimizer),
        )


def _layout(spec: FineTuneSpec, *, without_mesh: bool = False) -> Layout | None:
    """The layout; None where another rule has something to say about the shape."""
    try:
        return layout(spec.model_copy(update={"mesh": MeshSpec()}) if without_mesh else spec)
    except ValueError:
        return None


def _divisors(number: int) -> list[int]:
    """Its divisors, at most the three smallest and the three largest."""
    found = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    return [*found[:3], *found[3:][-3:]]


def _near(number: float) -> list[int]:
    """The two whole numbers from 1 that lie nearest."""
    return [max(1, int(number)), max(1, int(number)) + 1]
