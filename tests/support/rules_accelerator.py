"""The rules for shapes of accelerators: specs that keep and break each."""

from __future__ import annotations

from typing import Any

Changes = dict[str, Any]


def gpu(**fields: Any) -> Changes:
    return {"spec.accelerator": {"gpu": fields}}


def tpu(**fields: Any) -> Changes:
    return {"spec.accelerator": {"tpu": fields}}


def rows(number: int, **fields: Any) -> Changes:
    return {"spec.training": {"globalBatchSize": number, **fields}}


V5E = tpu(type="tpu-v5-lite-podslice", topology="4x4")
KERAS: Changes = {"spec.accelerator": {"cpu": {"devices": 8}}, "spec.backend": "keras"}

GOOD: dict[str, Changes] = {
    "GPUs that a machine has": gpu(type="nvidia-l4", count=8),
    "a machine of sixteen": gpu(type="nvidia-tesla-a100", count=16),
    "nodes": {**gpu(type="nvidia-h200-141gb", count=8, nodes=4), **rows(64, microBatchSize=2)},
    "one host": tpu(type="tpu-v6e-slice", topology="2x4", chipsPerNode=8),
    "two hosts": tpu(type="tpu-v6e-slice", topology="2x4", chipsPerNode=4),
    "chips per node said though clear": tpu(type="tpu-v6e-slice", topology="4x4", chipsPerNode=4),
    "a cube": {**tpu(type="tpu-v5p-slice", topology="4x4x8"), **rows(128)},
    "the largest v5p": tpu(type="tpu-v5p-slice", topology="16x16x24"),
    "more chips than rows": tpu(type="tpu-v5-lite-podslice", topology="16x16"),
    "mesh of the recipe": {**V5E, "spec.backend": "keras", "spec.mesh": {"data": 2, "model": 8}},
    "mesh by one side": {**V5E, "spec.mesh": {"model": 4}},
    "virtual devices": {**KERAS, "spec.mesh": {"data": 2}},
}

BAD: dict[str, tuple[Changes, str, str, str]] = {
    # rule: (changes, path, message, remedy)
    "gpu: short GPU name": (gpu(type="l4"), "spec.accelerator.gpu.type", "is no GPU type", "Use nvidia-l4."),
    "gpu: unheard GPU": (gpu(type="zzzz"), "spec.accelerator.gpu.type", "is no GPU type", "nvidia-tesla-t4"),
    "gpu: TPU as GPU": (gpu(type="v5e"), "spec.accelerator.gpu.type", "is no GPU type", "nvidia-l4"),
    "gpu: three GPUs": (
        gpu(type="nvidia-l4", count=3),
        "spec.accelerator.gpu.count",
        "no machine has that many nvidia-l4",
        "Use 1, 2, 4 or 8 per node",
    ),
    "division: an 8-bit optimizer": (
        {**gpu(type="nvidia-l4", count=2), "spec.full": {}, "spec.training.optimizer": "adamw_bnb_8bit"},
        "spec.training.optimizer",
        "cannot be divided among several GPUs",
        "Use adamw_torch or adamw_torch_fused, or one GPU.",
    ),
    "tpu: short TPU name": (
        tpu(type="v5e", topology="2x4"),
        "spec.accelerator.tpu.type",
        "is no TPU type",
        "Use tpu-v5-lite-podslice.",
    ),
    "tpu: topology": (
        tpu(type="tpu-v5-lite-podslice", topology="3x5"),
        "spec.accelerator.tpu.topology",
        "has no slices of this topology",
        "Use 1x1, 2x2",
    ),
    "tpu: shape left open": (
        tpu(type="tpu-v5-lite-podslice", topology="2x4"),
        "spec.accelerator.tpu.chipsPerNode",
        "comes in several shapes",
        "Set it to 8 or 4",
    ),
    "tpu: impossible shape": (
        tpu(type="tpu-v5-lite-podslice", topology="2x4", chipsPerNode=3),
        "spec.accelerator.tpu.chipsPerNode",
        "has no such machines",
        "Use 8 or 4",
    ),
    "gpu: no machine with one": (
        gpu(type="nvidia-h200-141gb"),
        "spec.accelerator.gpu.count",
        "no machine has that many nvidia-h200-141gb",
        "Use 8 per node.",
    ),
    "gpu: sixteen": (
        gpu(type="nvidia-h100-80gb", count=16, nodes=2),
        "spec.accelerator.gpu.count",
        "no machine has that many nvidia-h100-80gb",
        "Use 1, 2, 4 or 8 per node",
    ),
    "tpu: two dimensions for three": (
        tpu(type="tpu-v5p-slice", topology="4x4"),
        "spec.accelerator.tpu.topology",
        "has no slices of this topology",
        "Use 2x2x1, 2x2x2, 2x2x4 or 2x4x4 (or AxBxC of multiples of 4, A <= B <= C, up to 6144 chips)",
    ),
    "tpu: sides out of order": (
        tpu(type="tpu-v4-podslice", topology="8x4x4"),
        "spec.accelerator.tpu.topology",
        "has no slices of this topology",
        "A <= B <= C",
    ),
    "tpu: too large": (
        tpu(type="tpu-v4-podslice", topology="16x16x20"),
        "spec.accelerator.tpu.topology",
        "has no slices of this topology",
        "up to 4096 chips",
    ),
    "tpu: nothing along a side": (
        tpu(type="tpu-v5-lite-podslice", topology="0x4"),
        "spec.accelerator.tpu.topology",
        "has no slices of this topology",
        "Use 1x1, 2x2",
    ),
    "tpu: leading zero": (
        tpu(type="tpu-v5p-slice", topology="04x4x4"),
        "spec.accelerator.tpu.topology",
        "has no slices of this topology",
        "Use 2x2x1",
    ),
    "tpu: eight chips in a node of a large slice": (
        tpu(type="tpu-v5-lite-podslice", topology="4x4", chipsPerNode=8),
        "spec.accelerator.tpu.chipsPerNode",
        "4x4 of tpu-v5-lite-podslice has no such machines",
        "Use 4.",
    ),
    "mesh: other product": (
        {**V5E, "spec.mesh": {"data": 2, "model": 4}},
        "spec.mesh",
        "data x model must be the 16 chips",
        "Use 16 x 1, 8 x 2, 4 x 4, 2 x 8 or 1 x 16",
    ),
    "mesh: one side": (
        {**V5E, "spec.mesh": {"model": 3}},
        "spec.mesh.model",
        "must divide the 16 chips",
        "Use 1, 2, 4",
    ),
    "mesh: virtual devices": ({**KERAS, "spec.mesh": {"data": 3}}, "spec.mesh.data", "must divide the 8 chips", "1, 2"),
    "batch: fewer rows than GPUs": (
        gpu(type="nvidia-h100-80gb", count=8, nodes=4),
        "spec.training.globalBatchSize",
        "must be a multiple of the 32 GPUs",
        "Use such as 32 or 64",
    ),
    "batch: rows left over": (
        {**gpu(type="nvidia-l4", nodes=3), **rows(16)},
        "spec.training.globalBatchSize",
        "must be a multiple of the 3 GPUs",
        "Use such as 15 or 18",
    ),
    "batch: rows left over on a mesh": (
        {**V5E, "spec.mesh": {"data": 16}, **rows(24)},
        "spec.training.globalBatchSize",
        "must be a multiple of the 16 groups of chips along mesh.data",
        "Use such as 16 or 32",
    ),
    "batch: micro-batch above the share": (
        {**gpu(type="nvidia-l4", count=8), **rows(16, microBatchSize=4)},
        "spec.training.microBatchSize",
        "must divide 2, the share of each of 8 GPUs",
        "Use 1 or 2",
    ),
}
