"""Changes to a resolved spec that may make it fit; the planner tries each by a plan of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gemmatune_api import accelerators
from gemmatune_api.spec import FineTuneSpec, LoraSpec, QloraSpec, TrainingSpec

REMEDY_LENGTHS = (8192, 4096, 2048, 1024, 512, 256)

_ADAPTER: Mapping[str, Any] = {"rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear", "dora": False}

Changed = tuple[str, FineTuneSpec]
"""What a change is called, and the spec with it."""


def lighter(spec: FineTuneSpec) -> Iterator[Changed]:
    """Without the batch settings that the user fixed."""
    training = _training(spec)
    if training.gradient_checkpointing is False:
        training = training.model_copy(update={"gradient_checkpointing": True})
        yield "training.gradientCheckpointing true", _update(spec, training=training)
    if (training.micro_batch_size or 1) > 1:
        both = "" if training is spec.training else "training.gradientCheckpointing true and "
        training = training.model_copy(update={"micro_batch_size": 1})
        yield f"{both}training.microBatchSize 1", _update(spec, training=training)


def larger(spec: FineTuneSpec, capacity: int) -> Iterator[Changed]:
    """The same on every larger GPU that has a machine with as many of them."""
    gpu = spec.accelerator.gpu
    for found in accelerators.gpus() if gpu is not None else ():
        if gpu is None or found.capacity <= capacity or found.cpu_arch != "amd64":
            continue
        if accelerators.machine_for(found.type, gpu.count or 1) is not None:
            changed = spec.accelerator.model_copy(update={"gpu": gpu.model_copy(update={"type": found.type})})
            yield found.type, _update(spec, accelerator=changed)


def more(spec: FineTuneSpec) -> Iterator[Changed]:
    """The model divided among more GPUs of a node; copies of it would not get smaller."""
    gpu, training = spec.accelerator.gpu, _training(spec)
    if gpu is None or spec.method == "qlora":
        return
    for count in accelerators.possible_counts(gpu.type):
        share, rest = divmod((training.global_batch_size or 1), count * (gpu.nodes or 1))
        if count > (gpu.count or 1) and not rest and share % (training.micro_batch_size or 1) == 0:
            changed = spec.accelerator.model_copy(update={"gpu": gpu.model_copy(update={"count": count})})
            yield f"accelerator.gpu.count {count}", _update(spec, accelerator=changed)


def shorter(spec: FineTuneSpec, length: int) -> Iterator[Changed]:
    """The same with shorter rows."""
    for tokens in REMEDY_LENGTHS:
        if tokens < length:
            dataset = spec.dataset.model_copy(update={"max_length": tokens})
            yield f"dataset.maxLength {tokens}", _update(spec, dataset=dataset)


def with_lora(spec: FineTuneSpec) -> Iterator[Changed]:
    """An adapter in place of full tuning."""
    if spec.method == "full":
        yield "use lora", _update(spec, full=None, lora=LoraSpec(**_ADAPTER))


def with_qlora(spec: FineTuneSpec) -> FineTuneSpec:
    adapter: dict[str, Any] = spec.adapter.model_dump(exclude_none=True) if spec.method == "lora" else {}
    return _update(spec, lora=None, full=None, qlora=QloraSpec(**{**_ADAPTER, **adapter}))


def _update(spec: FineTuneSpec, **changes: Any) -> FineTuneSpec:
    return spec.model_copy(update=changes)


def _training(spec: FineTuneSpec) -> TrainingSpec:
    return spec.training or TrainingSpec()
