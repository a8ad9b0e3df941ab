"""The one table of defaults, and the spec with every default filled in (`status.resolved`)."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from gemmatune_api.base import ApiModel
from gemmatune_api.placement import FallbackSpec, GpuSpec, LimitsSpec, ProvisioningSpec
from gemmatune_api.spec import (
    Backend,
    ChatFormat,
    CheckpointSpec,
    DatasetSpec,
    FineTuneSpec,
    InstructFormat,
    LoraSpec,
    MethodKind,
    QloraSpec,
    SamplesSpec,
    TrainingSpec,
)

Model = TypeVar("Model", bound=ApiModel)

DIVIDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
"""Optimizers whose state several GPUs can divide: the others know nothing of divided tensors."""
RANK = 8
ALPHA_PER_RANK = 2
WARMUP_FRACTION = 0.03
LEARNING_RATE = {"qlora": 2e-4, "lora": 2e-4, "full": 1e-5}
SECRET_KEYS = {"hf": ("HF_TOKEN",), "kaggle": ("KAGGLE_USERNAME", "KAGGLE_KEY"), "ms": ("MODELSCOPE_API_TOKEN",)}
"""Keys of a secretRef by URI scheme."""
FIRST_STEP_STALL_SECONDS = 45 * 60
"""Longest time to the first step, which loads the model and may compile."""

DATASET: dict[str, Any] = {"split": "train", "max_length": 1024, "too_long": "truncate", "packing": True}
LORA: dict[str, Any] = {"rank": RANK, "dropout": 0.0, "target_modules": "all-linear", "dora": False}
QLORA: dict[str, Any] = {**LORA, "bits": 4}
FOUR_BITS: dict[str, Any] = {"quant_type": "nf4", "double_quant": True}
TRAINING: dict[str, Any] = {
    "global_batch_size": 16,
    "schedule": "cosine",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "precision": "bf16",
    "seed": 42,
    "log_every_steps": 1,
}
EPOCHS = 1.0
CHECKPOINT: dict[str, Any] = {"keep": 2, "best": False}
CHECKPOINT_EVERY = "10m"
OUTPUT: dict[str, Any] = {"merge": False, "overwrite": False}
SAMPLES: dict[str, Any] = {"max_new_tokens": 64}
GPU: dict[str, Any] = {"count": 1, "nodes": 1}
PROVISIONING: dict[str, Any] = {"mode": "onDemand"}
FALLBACK: dict[str, Any] = {"mode": "onDemand", "after_preemptions": 3, "after_pending": "30m"}
LIMITS: dict[str, Any] = {"max_retries": 3, "max_preemptions": 20, "pending_deadline": "24h", "stall_timeout": "15m"}


def _filled(model: Model, defaults: dict[str, Any]) -> Model:
    """The model with the fields that are None taken from the table."""
    absent = {field: value for field, value in defaults.items() if getattr(model, field) is None}
    return model.model_copy(update=absent)


def backend_of(spec: FineTuneSpec) -> Backend:
    """The backend: the one that is set, else torch on gpu and cpu, xla on tpu."""
    return spec.backend or ("xla" if spec.accelerator.kind == "tpu" else "torch")


def optimizer_of(method: MethodKind, accelerator: str) -> str:
    """Optimizer by backend and method, in transformers' names."""
    return "paged_adamw_8bit" if method == "qlora" and accelerator == "gpu" else "adamw_torch"


def warmup_steps(total_steps: int) -> int:
    """Default warm-up: 3% of the steps, at least one from ten steps on."""
    return max(math.ceil(total_steps * WARMUP_FRACTION), 1) if total_steps >= 10 else 0


def resolve(spec: FineTuneSpec) -> FineTuneSpec:
    """The spec with every default that does not depend on the data or the planner.

    Left to the planner: training.microBatchSize, training.gradientCheckpointing; to the data: warmupSteps of a run
    that is measured in epochs.
    """
    method = spec.method
    updates: dict[str, Any] = {
        "backend": backend_of(spec),
        "dataset": _dataset(spec.dataset),
        "training": _training(spec.training or TrainingSpec(), method, spec.accelerator.kind),
        "checkpoint": _checkpoint(spec.checkpoint or CheckpointSpec()),
        "output": _filled(spec.output, OUTPUT).model_copy(update={"uri": spec.output.uri.rstrip("/")}),
        "samples": _filled(spec.samples or SamplesSpec(prompts=[]), SAMPLES),
        "limits": _filled(spec.limits or LimitsSpec(), LIMITS),
        "provisioning": _provisioning(spec.provisioning or ProvisioningSpec()),
        "suspend": bool(spec.suspend),
    }
    if method != "full":
        updates[method] = _adapter(spec.adapter, method)
    if spec.accelerator.gpu is not None:
        gpu: GpuSpec = _filled(spec.accelerator.gpu, GPU)
        updates["accelerator"] = spec.accelerator.model_copy(update={"gpu": gpu})
    return spec.model_copy(update=updates)


def _dataset(dataset: DatasetSpec) -> DatasetSpec:
    dataset = _filled(dataset, {**DATASET, "packing": dataset.image_text is None})
    updates: dict[str, Any] = {}
    if dataset.instruct is not None:
        instruct: InstructFormat = _filled(dataset.instruct, {"instruction": "instruction", "output": "output"})
        updates["instruct"] = instruct
    if dataset.chat is not None:
        chat: ChatFormat = _filled(dataset.chat, {"train": "all"})
        updates["chat"] = chat
    return dataset.model_copy(update=updates)


def _adapter(adapter: LoraSpec, method: MethodKind) -> LoraSpec:
    adapter = _filled(adapter, QLORA if isinstance(adapter, QloraSpec) and method == "qlora" else LORA)
    if isinstance(adapter, QloraSpec) and adapter.bits == 4:
        adapter = _filled(adapter, FOUR_BITS)
    rank = adapter.rank or RANK
    return _filled(adapter, {"alpha": ALPHA_PER_RANK * rank})


def _training(training: TrainingSpec, method: MethodKind, accelerator: str) -> TrainingSpec:
    training = _filled(training, {**TRAINING, "learning_rate": LEARNING_RATE[method]})
    training = _filled(training, {"optimizer": optimizer_of(method, accelerator)})
    if training.max_steps is None:
        return _filled(training, {"epochs": EPOCHS})
    return _filled(training, {"warmup_steps": warmup_steps(training.max_steps)})


def _checkpoint(checkpoint: CheckpointSpec) -> CheckpointSpec:
    checkpoint = _filled(checkpoint, CHECKPOINT)
    return checkpoint if checkpoint.every_steps is not None else _filled(checkpoint, {"every": CHECKPOINT_EVERY})


def _provisioning(provisioning: ProvisioningSpec) -> ProvisioningSpec:
    provisioning = _filled(provisioning, PROVISIONING)
    if provisioning.mode != "spot":
        return provisioning
    fallback: FallbackSpec = _filled(provisioning.fallback or FallbackSpec(), FALLBACK)
    return provisioning.model_copy(update={"fallback": fallback})


def total_steps(training: TrainingSpec, rows: int | None) -> int | None:
    """Optimizer steps of a run over `rows` rows; None where the rows are needed and not known yet.

    The last partial batch of an epoch is dropped, so an epoch has floor(rows / globalBatchSize) steps; a fraction of
    an epoch is rounded to whole steps, at least one.
    """
    if training.max_steps is not None:
        return training.max_steps
    if rows is None:
        return None
    per_epoch = rows // (training.global_batch_size or TRAINING["global_batch_size"])
    return max(1, round(per_epoch * (training.epochs or EPOCHS))) if per_epoch else 0
