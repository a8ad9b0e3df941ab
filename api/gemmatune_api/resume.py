"""Which attempts may continue each other: the hash of all that decides a run's result."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from gemmatune_api.runconfig import RunConfig


def resume_hash(config: RunConfig, model_revision: str, data_hash: str) -> str:
    """Hash of what changes the result: two attempts with equal hashes may continue each other (hex, 16 characters).

    Evaluation counts only where it chooses the result (checkpoint.best). Leaves out quantisation of the base, 8-bit or
    paged optimizer storage, micro-batch, checkpointing, accelerator, samples, limits and logging.
    """
    training, checkpoint = config.training, config.checkpoint
    decides: dict[str, Any] = {
        "model": config.model.uri,
        "revision": model_revision,
        "data": data_hash,
        "result": "full" if config.method.kind == "full" else "adapter",
        "rank": config.method.rank,
        "alpha": config.method.alpha,
        "dropout": config.method.dropout,
        "targetModules": config.method.target_modules,
        "dora": config.method.dora,
        "maxLength": config.dataset.max_length,
        "packing": config.dataset.packing,
        "globalBatchSize": training.global_batch_size,
        "optimizer": "adafactor" if training.optimizer == "adafactor" else "adamw",
        "learningRate": training.learning_rate,
        "weightDecay": training.weight_decay,
        "maxGradNorm": training.max_grad_norm,
        "schedule": training.schedule,
        "warmupSteps": training.warmup_steps,
        "maxSteps": training.max_steps,
        "epochs": training.epochs,
        "seed": training.seed,
        "precision": training.precision,
        "best": (training.eval_every_steps or checkpoint.every_steps) if checkpoint.best else None,
    }
    text = json.dumps(decides, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
