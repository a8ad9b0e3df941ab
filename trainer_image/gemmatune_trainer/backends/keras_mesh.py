"""The device mesh of the keras backend, how weights are divided over it, and the check that they really are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from gemmatune_trainer.backends.base import Placement
from gemmatune_trainer.errors import InvalidConfig

DATA = "data"
MODEL = "model"
LAYOUT: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"token_embedding/embeddings", (MODEL, DATA)),
    (r"decoder_block_\d+/attention/(query|key|value)/kernel", (MODEL, DATA, None)),
    (r"decoder_block_\d+/attention/attention_output/kernel", (MODEL, None, DATA)),
    (r"decoder_block_\d+/ffw_gating(_2)?/kernel", (DATA, MODEL)),
    (r"decoder_block_\d+/ffw_linear/kernel", (MODEL, DATA)),
)
"""Axes of every large weight by its path: that of Gemma's own training (KerasHub has it for GemmaBackbone alone)."""


class ShardingWrong(RuntimeError):
    """A variable does not lie on the devices as it should."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a variable lies: the axes along each dimension, and the bytes of it that one device holds."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    device_bytes: int
    bytes: int


class DividedModel(keras.distribution.ModelParallel):  # type: ignore[misc]
    """ModelParallel that leaves a dimension whole where its axis does not divide it: one head of keys on two devices.

    Another dimension in its place would make XLA gather the weight anew in every layer.
    """

    def get_variable_layout(self, variable: Any) -> Any:
        """The layout of a variable."""
        wanted = super().get_variable_layout(variable)
        axes = divisible(wanted.axes, variable.shape, self.sizes)
        return keras.distribution.TensorLayout(list(axes), self.device_mesh)

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each axis."""
        return dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))


def divisible(axes: Sequence[str | None], shape: Sequence[int], sizes: dict[str, int]) -> tuple[str | None, ...]:
    """The axes without those that do not divide their dimension."""
    return tuple(
        axis if axis is not None and size % sizes[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)
    )


def distribute(data: int, model: int) -> DividedModel:
    """Lets Keras place every variable that is made from now on over data x model devices.

    Raises:
        InvalidConfig: there are not as many devices.
    """
    devices = keras.distribution.list_devices()
    if len(devices) != data * model:
        raise InvalidConfig(
            f"the mesh is data {data} x model {model}, which is not the {len(devices)} devices that JAX finds here"
            + (f" ({jax.local_device_count()} of {jax.process_count()} hosts each)" if jax.process_count() > 1 else ""),
            "Set mesh and accelerator so that data x model is the number of devices.",
        )
    mesh = keras.distribution.DeviceMesh((data, model), (DATA, MODEL), devices)
    layout = keras.distribution.LayoutMap(mesh)
    for pattern, axes in LAYOUT:
        layout[f"(.*/)?{pattern}"] = axes
    found = DividedModel(layout_map=layout, batch_dim_name=DATA, auto_shard_dataset=False)
    keras.distribution.set_distribution(found)
    return found


def jax_mesh(distribution: DividedModel) -> jax.sharding.Mesh:
    """The mesh as JAX knows it."""
    mesh: jax.sharding.Mesh = distribution.device_mesh.backend_mesh
    return mesh


def sharding(distribution: DividedModel, *axes: str | None) -> jax.sharding.NamedSharding:
    """A sharding along axes of the mesh; without any, a copy on every device."""
    return jax.sharding.NamedSharding(jax_mesh(distribution), jax.sharding.PartitionSpec(*axes))


def expected(path: str, shape: Sequence[int], sizes: dict[str, int]) -> tuple[str | None, ...]:
    """The axes that a weight, or a moment of it, is to have by its path; adapters and norms are on every device."""
    for pattern, axes in LAYOUT:
        if re.fullmatch(f"(.*/)?{pattern}", path):
            return divisible(axes, shape, sizes)
    return (None,) * len(shape)


def check(named: Iterable[tuple[str, Any]], distribution: DividedModel) -> list[Placed]:
    """Where variables lie, each held against what is expected of its path.

    `named` gives the path that decides with each variable: for a moment, that of the weight that it belongs to.

    Raises:
        ShardingWrong: one lies elsewhere.
    """
    found = []
    for path, variable in named:
        value = variable.value
        wanted = expected(path, value.shape, distribution.sizes)
        if not value.sharding.is_equivalent_to(sharding(distribution, *wanted), value.ndim):
            raise ShardingWrong(
                f"{variable.path} {value.shape} lies as {getattr(value.sharding, 'spec', value.sharding)}, "
                f"expected {wanted}"
            )
        held = int(np.prod(value.sharding.shard_shape(value.shape))) * value.dtype.itemsize
        found.append(Placed(variable.path, tuple(value.shape), wanted, held, value.nbytes))
    return found


def summary(placed: Sequence[Placed]) -> list[Placement]:
    """What is placed, layers of one kind together, for log and report."""
    groups: dict[tuple[Any, ...], list[Placed]] = {}
    for item in placed:
        name = re.sub(r"(decoder|encoder)_block_\d+", r"\1_block_*", item.path)
        groups.setdefault((name, item.shape, item.axes, item.bytes), []).append(item)
    return [
        Placement(
            name, len(items), shape, axes, sum(item.bytes for item in items), sum(item.device_bytes for item in items)
        )
        for (name, shape, axes, _), items in groups.items()
    ]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has to do with the groups of devices along data, among which the rows of a step are divided.

    `held`: groups with a device of this process, which therefore needs their rows. `counted`: those of them that it
    alone counts, where a group lies on several hosts.
    """

    held: frozenset[int]
    counted: frozenset[int]


def share(distribution: DividedModel) -> Share:
    """The share of this process."""
    hosts = [{device.process_index for device in group} for group in jax_mesh(distribution).devices]
    return share_of(hosts, jax.process_index())


def share_of(hosts: Sequence[set[int]], own: int) -> Share:
    """The share of process `own`, where the devices of each group belong to the processes `hosts`."""
    held = frozenset(group for group, found in enumerate(hosts) if own in found)
    return Share(held, frozenset(group for group in held if min(hosts[group]) == own))


def host_arrays(values: Iterable[tuple[str, jax.Array]], *, keep: bool) -> Iterator[tuple[str, Any]]:
    """Whole arrays in host memory by name, one after another; all processes must ask.

    Only those that `keep` have them: the others help to gather each, and let it go before the next.
    """
    for name, value in values:
        if keep:
            yield name, host_array(value)
        elif not _is_here(value):
            host_array(value)


def _is_here(value: jax.Array) -> bool:
    """Whether this process has all of it already."""
    return bool(value.is_fully_addressable or value.is_fully_replicated)


def host_array(value: jax.Array) -> Any:
    """The whole array in host memory; all processes must ask."""
    if _is_here(value):
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def placed_array(array: Any, where: jax.sharding.Sharding) -> jax.Array:
    """A host array on the devices; of it a process needs what lies on its own."""
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def put(variable: Any, array: Any) -> None:
    """Writes a whole host array into a variable, on the devices where it lies."""
    old = variable.value
    if tuple(array.shape) != tuple(old.shape):
        raise ValueError(f"{variable.path} has shape {tuple(old.shape)}, found {tuple(array.shape)}")
    variable._value = placed_array(np.asarray(array).astype(old.dtype), old.sharding)
